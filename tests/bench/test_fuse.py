"""The benchmark of somebody's network before and after ``fuse``."""

import json
from pathlib import Path

import pytest

from bench.networks import fuse, tables
from bench.results_file import report


def test_the_benchmark_times_both_directions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = fuse.compare("resnet18", 2, 32, "cpu", rounds=3, layers=(1, 1, 1, 1), num_classes=4)
    assert [entry["direction"] for entry in found] == ["inference", "training step"]
    for entry in found:
        assert entry["replaced"] == 4
        assert {name: len(times) for name, times in entry["samples"].items()} == {
            "timm": 3,
            "fused": 3,
        }
        assert sorted(entry["samples"]["fused"])[1] == entry["median"]["fused"]
        assert all(size > 0 for size in entry["peak_bytes"].values())
    report("network fuse", found, tables.fused, tmp_path / "fuse.json")
    assert "| resnet18 | 2×3×32×32 | training step |" in capsys.readouterr().out
    content = json.loads((tmp_path / "fuse.json").read_text())
    assert (content["kind"], content["results"]) == ("network fuse", found)
    assert content["machine"]["threads"] > 0


def test_normalisations_are_fused_in_a_network_without_attention() -> None:
    small = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "num_classes": 4}
    found = fuse.compare("resnet18", 2, 32, "cpu", rounds=1, norms=True, **small)
    assert [(entry["replaced"], entry["norms"]) for entry in found] == [(0, 9), (0, 9)]


def test_a_network_with_nothing_to_fuse_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        fuse.ran_kernels, "fuse", lambda model, norms: fuse.ran_kernels.FuseReport()
    )
    with pytest.raises(ValueError, match="resnet18: expected CBAM modules to fuse, got: 0 CBAM"):
        fuse.compare("resnet18", 1, 32, "cpu", rounds=1, layers=(1, 1, 1, 1))
