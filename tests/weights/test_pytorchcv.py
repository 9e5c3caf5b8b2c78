"""Weights of pytorchcv's networks, beside its own."""

from typing import Any

import pytest
import torch
from torch import nn

import ran
from ran.errors import UserError
from tests.models.helpers import build, randomise, relative

resattnet = pytest.importorskip(
    "pytorchcv.models.resattnet", reason="pytorchcv is not installed: pip install pytorchcv"
)

#: Modules in each stage and p, t, r of its networks.
PLANS = {
    "attention56": ([1, 1, 1], [1, 2, 1]),
    "attention92": ([1, 2, 3], [1, 2, 1]),
    "attention452": ([2, 1, 1], [2, 4, 3]),
}
WIDTHS = (32, 64, 128, 256)


def theirs(name: str) -> nn.Module:
    """Its network, narrow and with an average over any size."""
    modules, scales = PLANS[name]
    units = [count + 1 for count in modules]
    network = resattnet.ResAttNet(
        channels=[[width] * count for width, count in zip(WIDTHS, (*units, 3), strict=True)],
        init_block_channels=8,
        attentions=[[0] + [1] * count for count in modules] + [[0, 0, 0]],
        att_scales=scales,
    )
    network.features.final_pool = nn.AdaptiveAvgPool2d(1)
    return randomise(network).double().eval()


def ours(name: str, **options: Any) -> ran.ResidualAttentionNetwork:
    options = {"graph": "additive", "pool": "torch", **options}
    modules = tuple(PLANS[name][0])
    return build(name, width_multiplier=0.125, modules=modules, **options).double().eval()


@pytest.mark.parametrize("name", PLANS)
def test_outputs_are_those_of_resattnet(name: str) -> None:
    original, model = theirs(name), ours(name)
    report = ran.load_checkpoint(model, original.state_dict())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert relative(model(x), original(x)) < 1e-9
    assert report.source == "pytorchcv"
    assert set(report.loaded) == set(model.state_dict())
    assert [report.left, report.ignored, report.adapted] == [{}, {}, {}]
    assert not report.unexpected


@pytest.mark.parametrize("option", [{"graph": "authors"}, {"pool": "caffe"}])
def test_the_authors_graph_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(option))}="):
        ran.load_checkpoint(ours("attention56", **option), theirs("attention56").state_dict())
