"""``ran_kernels.fuse(model, norms=True)`` on other libraries' networks and on people's own."""

import copy
from typing import Any

import pytest
import timm
import torch

import ran_kernels

from .fuse_norm_cases import (
    BLOCKS,
    NETWORKS,
    SMALL,
    Unit,
    dense,
    each_network,
    fused_of,
    net,
    taken,
)
from .test_fuse import randomised, run


@each_network
def test_fused_equals_the_original(name: str) -> None:
    make, fused = NETWORKS[name]
    torch.manual_seed(0)
    original = randomised(make())
    other = copy.deepcopy(original)
    report = ran_kernels.fuse(other, norms=True)
    assert (report.norms, report.norms_left) == (fused, {})
    x = torch.randn(2, 3, 40, 33, dtype=torch.float64)
    with taken(other) as ways:
        torch.testing.assert_close(run(other, x), run(original, x))
    assert ways == {name: [True, True] for name in fused}  # in training, and in evaluation


def test_a_list_of_features_is_followed_too() -> None:
    """torchvision's dense layers take a list of features or a tensor, and have dropout."""
    torch.manual_seed(0)
    original = randomised(dense()).eval()
    other = copy.deepcopy(original)
    report = ran_kernels.fuse(other, norms=True)
    layers = [f"features.denseblock{i}.denselayer{j}" for i in (1, 2) for j in (1, 2)]
    pairs = {layer: ["norm1+relu1", "norm2+relu2"] for layer in layers}
    assert report.norms == {
        "features": ["norm0+relu0"], "features.transition1": ["norm+relu"], **pairs
    }  # fmt: skip
    x = torch.randn(2, 3, 33, 33, dtype=torch.float64)
    with taken(other) as ways:
        torch.testing.assert_close(other(x), original(x))
    assert ways == {name: [True] for name in report.norms}
    layer, twin = (m.get_submodule(layers[0]).train() for m in (other, original))
    results = []
    for module in (layer, twin):
        torch.manual_seed(1)  # for dropout
        features = [torch.randn(2, 4, 5, 5, dtype=torch.float64) for _ in range(2)]
        with taken(layer) as ways:
            results.append([module(features), module(torch.cat(features, 1))])
        assert ways == ({"": [True, True]} if module is layer else {})
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", ["torchvision resnet50", "own"])
def test_float32_in_both_layouts(name: str) -> None:
    torch.manual_seed(0)
    original = randomised(NETWORKS[name][0]()).float()
    for layout in (torch.contiguous_format, torch.channels_last):
        model = copy.deepcopy(original).to(memory_format=layout)
        x = torch.randn(2, 3, 40, 33).contiguous(memory_format=layout)
        exact = run(copy.deepcopy(model).double(), x.double())
        got, want = run(fused_of(model), x), run(model, x)
        for ours, theirs, right in zip(got, want, exact, strict=True):
            errors = [(t.double() - right.double()).norm() for t in (ours, theirs)]
            assert errors[0] <= 3 * errors[1] + 1e-6 * right.double().norm()


def test_by_default_no_norm_is_fused() -> None:
    model = net()
    report = ran_kernels.fuse(model)
    assert report == ran_kernels.FuseReport()
    assert str(report) == "0 CBAM modules replaced, 0 left"
    assert type(model.unit) is Unit


def test_with_attention_and_in_words() -> None:
    torch.manual_seed(0)
    cbam: dict[str, Any] = {"block_args": {"attn_layer": "cbam"}}
    original = randomised(timm.create_model("resnet18", num_classes=3, **SMALL, **cbam))
    model = copy.deepcopy(original)
    report = ran_kernels.fuse(model, norms=True)
    assert len(report.replaced) == 4
    assert str(report).splitlines() == [
        "4 CBAM modules replaced, 0 left",
        *(f"  replaced layer{i}.0.se" for i in (1, 2, 3, 4)),
        "5 normalisations fused in 5 modules, 0 modules left",
        *(f"  fused {name}: bn1+act1" for name in ("(the model)", *BLOCKS)),
    ]
    x = torch.randn(2, 3, 40, 33, dtype=torch.float64)
    with taken(model) as ways:
        torch.testing.assert_close(run(model, x)[0], run(original, x)[0])
    assert ways == {name: [True, True] for name in ("", *BLOCKS)}
