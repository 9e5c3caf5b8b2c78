"""``ran bench`` hands over to the benchmarks of the checkout."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ran.cli import app
from ran.cli.bench import PROGRAMS


def test_options_reach_the_benchmark(capfd: pytest.CaptureFixture[str]) -> None:
    result = CliRunner().invoke(app, ["bench", "scale", "--", "--help"])
    assert result.exit_code == 0
    assert "--sweep" in capfd.readouterr().out


@pytest.mark.parametrize(("what", "program"), PROGRAMS.items())
def test_every_benchmark_is_there(what: str, program: tuple[str, ...]) -> None:
    # Starting each one would import torch again.
    assert find_spec(program[0]), what
    assert all((Path(__file__).parents[2] / folder).is_dir() for folder in program[1:])


def test_wrong_options_end_with_code_2() -> None:
    assert CliRunner().invoke(app, ["bench", "scale", "--", "--sweep", "width"]).exit_code == 2


def test_an_unknown_benchmark_is_named() -> None:
    result = CliRunner().invoke(app, ["bench", "disks"])
    assert result.exit_code == 2
    assert f"expected one of {', '.join(PROGRAMS)}" in result.output


def test_without_a_checkout_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules["ran.cli.bench"], "_ROOT", tmp_path)
    result = CliRunner().invoke(app, ["bench", "kernels"])
    assert result.exit_code == 2
    assert "expected a checkout of the sources" in result.output
