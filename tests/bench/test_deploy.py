"""The benchmark of deployed networks."""

import json
from pathlib import Path

import pytest
import torch

from bench.networks import deploy


@pytest.mark.usefixtures("few_channels")
def test_every_way_takes_its_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ways = [way for way in deploy.VARIANTS if way not in deploy.COMPILED]  # half a minute each
    options = [option for way in ways for option in ("--variant", way)]
    result = tmp_path / "deploy.json"
    deploy.main(
        [
            *("--network", "cbam_resnet18", "--batch", "2", "--size", "32", "--rounds", "3"),
            *("--dtype", "float32", "--device", "cpu", "--result", str(result), *options),
        ]
    )
    content = json.loads(result.read_text())
    assert content["kind"] == "network deploy"
    (entry,) = content["results"]
    assert {name: len(times) for name, times in entry["samples"].items()} == dict.fromkeys(ways, 3)
    for found in ("ready_seconds", "compile_seconds", "peak_bytes", "launches", "operations"):
        assert set(entry[found]) == set(ways)
    assert "| cbam_resnet18 | 2×3×32×32 | float32 |" in capsys.readouterr().out


def test_what_computes_something_else_prints_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy.ran, "deploy", lambda model, **_: lambda x: torch.ones(1, 1000))
    with pytest.raises(ValueError, match="deployed: expected logits within"):
        list(deploy.compare("cbam_resnet18", 1, [32, 32], "float32", "cpu", 1, ["deployed"]))
