"""Peak memory of a training step, as the benchmark finds it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ran
from bench.networks import memory


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("attention56", {"width_multiplier": 0.25}),
        ("cbam_resnet50", {"channels": (32,) * 4}),
    ],
)
def test_checkpointing_at_least_halves_the_peak(name: str, options: dict[str, Any]) -> None:
    model = ran.create_model(name, num_classes=4, **options)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # each further one has scratch memory, much for a network this small
    try:
        peak = memory.peaks(model, torch.randn(4, 3, 96, 96), torch.arange(4))
    finally:
        torch.set_num_threads(threads)
    assert peak["plain"] > 4 * 4 * 3 * 96 * 96
    assert peak["ours"] < peak["plain"]
    assert peak["ours checkpointed"] < peak["ours"] / 2
    assert peak["plain checkpointed"] < peak["plain"] / 2


def test_the_benchmark_writes_what_it_finds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "memory.json"
    options = ["--network", "attention56_cifar_pool", "--batch", "2", "--size", "16"]
    memory.main([*options, "--device", "cpu", "--result", str(result)])
    assert "attention56_cifar_pool" in capsys.readouterr().out
    content = json.loads(result.read_text())
    assert content["kind"] == "network memory"
    assert content["machine"]["torch"] == torch.__version__
    (entry,) = content["results"]
    assert (entry["batch"], entry["size"], entry["device"]) == (2, [16, 16], "cpu")
    assert list(entry["peak_bytes"]) == list(memory.VARIANTS)
    assert all(isinstance(value, int) and value > 0 for value in entry["peak_bytes"].values())


def test_variants_that_disagree_have_no_peak() -> None:
    model = ran.create_model("attention56_cifar_pool", width_multiplier=0.25)

    class Drifting(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x + self.calls

    model.add_module("stem_pool", Drifting())
    with pytest.raises(ValueError, match="ours: result 0 is off by"):
        memory.peaks(model, torch.randn(2, 3, 16, 16), torch.arange(2))
