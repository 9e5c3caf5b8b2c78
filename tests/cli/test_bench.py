"""``ran bench`` hands over to the benchmarks of the checkout."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ran.cli import app


@pytest.mark.parametrize(
    ("what", "option"), [("scale", "--sweep"), ("deploy", "--variant"), ("ablation", "--seeds")]
)
def test_options_reach_the_benchmark(
    what: str, option: str, capfd: pytest.CaptureFixture[str]
) -> None:
    result = CliRunner().invoke(app, ["bench", what, "--", "--help"])
    assert result.exit_code == 0
    assert option in capfd.readouterr().out


def test_wrong_options_end_with_code_2() -> None:
    assert CliRunner().invoke(app, ["bench", "scale", "--", "--sweep", "width"]).exit_code == 2


def test_an_unknown_benchmark_is_named() -> None:
    result = CliRunner().invoke(app, ["bench", "disks"])
    assert result.exit_code == 2
    assert "what: expected one of kernels, networks" in result.output


def test_without_a_checkout_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules["ran.cli.bench"], "_ROOT", tmp_path)
    result = CliRunner().invoke(app, ["bench", "kernels"])
    assert result.exit_code == 2
    assert "expected a checkout of the sources" in result.output
