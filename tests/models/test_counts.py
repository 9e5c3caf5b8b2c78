"""Parameter counts and multiply-adds, on the meta device."""

import pytest
import torch
from torch import nn

import ran
from tests.models.helpers import small

#: Counted from the authors' graphs; the deep ones as another library's tests assert them.
PARAMETERS = {
    "attention56": 31_810_728,
    "attention92": 52_466_344,
    "attention128": 65_294_504,
    "attention164": 78_122_664,
    "attention200": 90_950_824,
    "attention236": 103_778_984,
    "attention452": 182_285_224,
    "attentionnext56": 31_318_824,
    "attentionnext92": 52_102_952,
}


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return ran.create_model(name)


@pytest.mark.parametrize(("name", "expected"), PARAMETERS.items())
def test_parameters(name: str, expected: int) -> None:
    assert ran.count_parameters(on_meta(name)) == expected


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("attention56", 6.2708),
        ("attention92", 10.5338),
        ("attentionnext56", 6.4191),
        ("attentionnext92", 10.7043),
    ],
)
def test_multiply_adds(name: str, billions: float) -> None:
    assert round(ran.count_multiply_adds(on_meta(name)) / 1e9, 4) == billions


@pytest.mark.parametrize(
    ("name", "millions"),
    [("attention92_cifar", 1.93), ("attention236_cifar", 5.12), ("attention92_cifar_wide", 12.17)],
)
def test_cifar_parameters(name: str, millions: float) -> None:
    assert round(ran.count_parameters(on_meta(name)) / 1e6, 2) == millions


def test_multiply_adds_of_single_layers() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, groups=2), nn.Flatten(), nn.Linear(72, 5))
    convolution = 8 * 3 * 3 * (2 * 3 * 3)
    assert ran.count_multiply_adds(model, (4, 8, 8)) == convolution + 72 * 5


def test_counting_leaves_the_model_as_it_is() -> None:
    model = small()
    model.stem.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ran.count_multiply_adds(model, (3, 32, 32))
    assert model.training
    assert not model.stem.training
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_frozen_parameters_do_not_learn() -> None:
    model = small()
    frozen = sum(parameter.numel() for parameter in model.stem.parameters())
    total = ran.count_parameters(model)
    model.stem.requires_grad_(False)
    assert ran.count_parameters(model) == total - frozen
