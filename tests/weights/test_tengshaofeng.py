"""Weights of the well-known PyTorch reimplementation, beside that network written again."""

from typing import Any

import pytest
import torch

import ran
from ran.errors import UserError
from ran.models.registry import SPECS
from tests.models.helpers import build, randomise, relative
from tests.weights.reimplementation import Reimplementation

NARROW = 0.125
#: Our network and options by theirs, then their depths, first kernel, first pooling and an input.
NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[int, ...], int, int, int]] = {
    "56": ("attention56", {}, (3, 2, 1), 7, 3, 64),
    "92": ("attention92", {}, (3, 2, 1), 7, 3, 70),
    "448input": ("attention92_448", {}, (4, 3, 2, 1), 7, 3, 64),
    "92_32input": ("attention92_cifar_pool", {"mask_depths": (2, 1, 0)}, (2, 1, 0), 5, 2, 32),
    "92_32input_update": ("attention92_cifar_wide", {}, (2, 1, 0), 3, 0, 32),
}


def narrow(name: str, **options: Any) -> ran.ResidualAttentionNetwork:
    options = {"graph": "additive", "pool": "torch", "num_classes": 10, **options}
    return build(name, width_multiplier=NARROW, **options).double().eval()


def theirs(variant: str) -> tuple[Reimplementation, dict[str, torch.Tensor]]:
    name, _, depths, stem, pool, _ = NETWORKS[variant]
    network = Reimplementation(SPECS[name].scaled(NARROW), depths, stem, pool)
    network = randomise(network).double().eval()
    return network, network.state_dict()


def test_the_reimplementation_is_as_large_as_the_original() -> None:
    with torch.device("meta"):
        network = Reimplementation(SPECS["attention92_cifar_wide"], (2, 1, 0), 3, 0)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == 19.92


@pytest.mark.parametrize("variant", NETWORKS)
def test_outputs_are_those_of_the_reimplementation(variant: str) -> None:
    original, weights = theirs(variant)
    name, options, *_, size = NETWORKS[variant]
    model = narrow(name, **options)
    report = ran.load_checkpoint(model, {f"module.{key}": value for key, value in weights.items()})
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        expected = original(x)
        assert relative(model(x), expected) < 1e-9
    assert report.source == "tengshaofeng"
    assert set(report.loaded) == set(model.state_dict())
    assert [report.left, report.unexpected, report.adapted] == [{}, (), {}]
    dead = {
        f"{block}.conv4.weight"
        for block, unit in original.named_modules()
        if getattr(unit, "keeps_shape", False)
    }
    assert dead
    assert set(report.ignored) == dead


@pytest.mark.parametrize(
    ("variant", "name", "options"),
    [
        ("56", "attention56", {"graph": "authors"}),
        ("56", "attention56", {"pool": "caffe"}),
        ("56", "attention56", {"residual": False}),
        # These have the same names and shapes as well, and pool where the original does not.
        ("92_32input", "attention92_cifar_pool", {"mask_depths": (2, 1, 1)}),
        ("92_32input", "attention92_cifar_pool", {"mask_depths": (2, 1, 0), "stem_pool": 3}),
        ("92_32input_update", "attention92_cifar_wide", {"tail_stride": 2}),
    ],
)
def test_a_network_that_computes_something_else_is_refused(
    variant: str, name: str, options: dict[str, Any]
) -> None:
    model = narrow(name, **options)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    _, weights = theirs(variant)
    for strict in (True, False):
        with pytest.raises(UserError, match="need a network with ") as caught:
            ran.load_checkpoint(model, weights, strict=strict)
    option = list(options)[-1]
    assert option in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_dead_shortcut_of_another_place_is_unexpected() -> None:
    _, weights = theirs("56")
    weights["somewhere.conv4.weight"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"1 unexpected: somewhere\.conv4\.weight"):
        ran.load_checkpoint(narrow("attention56"), weights)
