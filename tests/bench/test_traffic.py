"""The count of what a training step moves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import ran_kernels
from bench.networks import tables, traffic
from bench.networks.inductor_traffic import counted_by_inductor
from ran.models import sums, units
from ran.models.modes import set_norm_conv

BYTES = 4 * 2 * 3 * 8 * 8  # of the tensor that the operators below are called with


def counted() -> dict[str, int]:
    """The bytes of a norm, a ReLU in place and an addition, forward and backward."""
    with FakeTensorMode():
        x = torch.empty(2, 3, 8, 8, requires_grad=True)
        weight, bias = (torch.empty(3, requires_grad=True) for _ in range(2))
        with traffic.Traffic() as found:
            x = F.relu(F.batch_norm(x, None, None, weight, bias, training=True), inplace=True)
            (x + x.detach()).view(-1).sum().backward()
    return dict(found.bytes)


def test_operators_move_what_they_read_and_write() -> None:
    small = 100  # bytes: the channels' numbers, and single ones
    forward = counted()
    assert forward["aten::native_batch_norm"] == pytest.approx(3 * BYTES, abs=small)
    assert forward["aten::native_batch_norm_backward"] == pytest.approx(5 * BYTES, abs=small)
    assert forward["aten::relu_"] == 2 * BYTES
    assert forward["aten::threshold_backward"] == 3 * BYTES
    assert forward["aten::add"] == 3 * BYTES
    assert forward["aten::sum"] == BYTES + 4
    assert not any("view" in name or "detach" in name or "prim" in name for name in forward)


def test_a_copy_does_not_read_what_it_overwrites() -> None:
    with FakeTensorMode():
        x = torch.empty(10)
        with traffic.Traffic() as found:
            x.copy_(torch.empty(10, dtype=torch.float64))
            x.zero_()
    assert found.bytes == {"aten::copy_": 80 + 40, "aten::zero_": 40}


def test_a_fused_network_moves_less() -> None:
    entry = traffic.measure("torchvision/resnet18", 128, 224, torch.bfloat16, inductor=False)
    moved, kept = entry["bytes"], entry["kept_bytes"]
    assert 0.7 * moved["plain"] < moved["ours"] < 0.8 * moved["plain"]
    # The convolutions keep what the ReLU gave, either way.
    assert kept["ours"] == pytest.approx(kept["plain"], rel=1e-3)
    assert entry["operators"]["ours"]["ran::batch_norm_grad"]["calls"] == 17


def test_what_is_kept_is_counted_once_and_without_parameters() -> None:
    layer = torch.nn.Linear(8, 8)
    x = torch.ones(4, 8)
    with traffic.kept(layer) as storages:
        y = layer(x).exp()  # keeps x, and its result
        (y[:2] * y[2:]).sum()  # two views of that
    assert sum(storages.values()) == 2 * 4 * 8 * 4


def test_a_network_without_normalisations_is_refused() -> None:
    match = "torchvision/squeezenet1_1: expected normalisations to fuse"
    with pytest.raises(ValueError, match=match):
        traffic.measure("torchvision/squeezenet1_1", 1, 32, torch.float32, inductor=False)


@pytest.mark.parametrize(
    ("norm_conv", "forward", "backward"), [(True, 4.75, 11.25), (False, 9.5, 13.0)]
)
def test_a_unit_moves_what_is_said(norm_conv: bool, forward: float, backward: float) -> None:
    """The figures of ran_kernels/norm_relu_conv.py: what one unit more among others moves."""
    moved = []
    for count in (2, 3):
        chain = units.unit_sequence("preact", 64, count).bfloat16()
        set_norm_conv(chain, norm_conv)
        with FakeTensorMode(allow_non_fake_inputs=True), traffic.of_gpu():
            x = torch.empty(64, 64, 56, 56, dtype=torch.bfloat16, requires_grad=True)
            x = x.contiguous(memory_format=torch.channels_last)
            with traffic.Traffic() as first:
                out = sums.value_of(sums.chained(chain, x))
            with traffic.Traffic() as second:
                out.backward(torch.empty_like(out))
        moved.append((first.bytes.total(), second.bytes.total()))
    size = 2 * x.numel()
    found = [(more - less) / size for more, less in zip(moved[1], moved[0], strict=True)]
    assert found == pytest.approx([forward, backward], rel=2e-3)


def test_a_mask_that_makes_the_gate_moves_what_is_said() -> None:
    """The figures of ran_kernels/norm_relu_conv.py."""

    def image() -> torch.Tensor:
        x = torch.empty(64, 64, 56, 56, dtype=torch.bfloat16)
        return x.contiguous(memory_format=torch.channels_last).requires_grad_()

    with FakeTensorMode(allow_non_fake_inputs=True), traffic.of_gpu():
        x, trunk = image(), image()
        weight = torch.empty(64, 64, 1, 1, dtype=torch.bfloat16, requires_grad=True)
        pair = (torch.empty(64), torch.empty(64))
        options: dict[str, Any] = {"training": True, "statistics": pair, "trunk": trunk}
        with traffic.Traffic() as first:
            _, ((out, _),) = ran_kernels.norm_relu_conv(
                x, None, None, convs=[ran_kernels.Convolution(weight)], **options
            )
        with traffic.Traffic() as second:
            out.backward(torch.empty_like(out))
    size = 2 * x.numel()
    found = [moved.bytes.total() / size for moved in (first, second)]
    assert found == pytest.approx([3, 12], rel=2e-3)


def test_kinds_take_every_operator_once() -> None:
    operators = {
        name: {"calls": 1, "bytes": 10**i}
        for i, name in enumerate(
            ["aten::convolution_backward", "ran::batch_norm_grad", "aten::add_", "ran::upsample"]
        )
    }
    assert tables.by_kind_moved(operators) == {
        "convolutions": 1,
        "norm and ReLU": 10,
        "additions": 100,
        "the rest": 1000,
    }


def test_entries_and_their_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "traffic.json"
    traffic.main(["--network", "attention56_cifar", "--batch", "2", "--result", str(path)])
    (entry,) = json.loads(path.read_text())["results"]
    assert (entry["size"], entry["dtype"]) == ([32, 32], "bfloat16")
    for variant, moved in entry["bytes"].items():
        assert sum(o["bytes"] for o in entry["operators"][variant].values()) == moved
    assert entry["bytes"]["ours"] < entry["bytes"]["plain"]
    assert entry["operators"]["ours"]["ran::attention_gate_backward"]["calls"] > 0
    assert not any(name.startswith("ran::") for name in entry["operators"]["plain"])
    assert "| attention56_cifar | 2×3×32×32 | bfloat16 |" in capsys.readouterr().out


def test_inductor_counts_what_its_fused_kernels_move() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(1000, requires_grad=True)
        # Forward: reads x. Backward, 2x times a number: reads x, and writes its gradient.
        moved = counted_by_inductor(lambda: (x * x + 1).sum())
    assert moved == pytest.approx(3 * 4000, abs=100)
