"""The machine's ceilings."""

import json
from pathlib import Path

import pytest

from bench import ceilings


def test_they_are_measured_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ceilings.SIDE, "cpu", 64)
    monkeypatch.setitem(ceilings.BYTES, "cpu", 2**16)
    path = tmp_path / "ceilings.json"
    ceilings.main(["--device", "cpu", "--rounds", "3", "--result", str(path)])
    content = json.loads(path.read_text())
    assert content["kind"] == "ceilings"
    (result,) = content["results"]
    copied, multiplied = (sorted(result["samples"][name])[1] for name in ("copy", "product"))
    assert result["copy_tb_per_s"] == pytest.approx(2 * 2**16 / copied / 1e12)
    assert result["product_tflop_per_s"] == pytest.approx(2 * 64**3 / multiplied / 1e12)
    assert content["machine"]["chip"] in capsys.readouterr().out
