"""The attention module against the paper's formulas, written out on the module's own layers."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ran
from ran.models.spec import NetworkSpec
from ran.models.units import PreActUnit, ResNeXtUnit, max_pool
from tests.models.helpers import randomise


def module(depth: int = 2, **options: Any) -> ran.AttentionModule:
    made = ran.AttentionModule(8, depth, **options).double().eval()
    randomise(made)
    return made


def up(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=True)


def x0(*size: int) -> Tensor:
    return torch.randn(2, 8, *size, dtype=torch.float64)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("activation", ["mixed", "channel", "spatial"])
def test_module_gates_the_trunk(residual: bool, activation: str) -> None:
    made = module(1, residual=residual, activation=activation)
    x = x0(9, 6)
    pre = made.pre(x)
    trunk = made.trunk(pre)
    logits = made.mask(pre, trunk)
    if activation == "mixed":
        mask = 1 / (1 + torch.exp(-logits))
    elif activation == "channel":
        mask = logits / logits.square().sum(1, keepdim=True).sqrt()
    else:
        mean = logits.mean((2, 3), keepdim=True)
        variance = (logits - mean).square().mean((2, 3), keepdim=True)
        mask = torch.sigmoid((logits - mean) / (variance + 1e-5).sqrt())
    expected = made.post((1 + mask) * trunk if residual else mask * trunk)
    torch.testing.assert_close(made(x), expected)


@pytest.mark.parametrize("graph", ["authors", "additive"])
@pytest.mark.parametrize("size", [(8, 8), (9, 14)])
def test_mask_branch_of_depth_two(graph: str, size: tuple[int, int]) -> None:
    made = module(2, graph=graph).mask
    x, trunk = x0(*size), x0(*size)
    level1 = made.down[0](made.pool(x))
    level2 = made.bottom(made.down[1](made.pool(level1)))
    middle = up(level2, level1) + made.skip[0](level1)
    if graph == "additive":
        middle = middle + level1
    last = up(made.up[0](middle), trunk)
    if graph == "additive":
        last = last + trunk
    torch.testing.assert_close(made(x, trunk), made.head(last))


@pytest.mark.parametrize("graph", ["authors", "additive"])
def test_mask_branch_of_depth_zero_is_two_units_and_the_head(graph: str) -> None:
    made = module(0, graph=graph).mask
    x = x0(5, 7)
    assert len(made.bottom) == 2
    torch.testing.assert_close(made(x, x0(5, 7)), made.head(made.bottom[1](made.bottom[0](x))))


@pytest.mark.parametrize("depth", [0, 1, 2, 3, 4])
def test_p_t_and_r_count_units(depth: int) -> None:
    def units(part: nn.Module) -> int:
        return sum(isinstance(layer, PreActUnit) for layer in part.modules())

    made = module(depth, p=2, t=3, r=4)
    assert (units(made.pre), units(made.trunk), units(made.post)) == (2, 3, 2)
    # r on each level down and up, r more at the deepest, a skip unit on each level but that one.
    levels = max(depth, 1)
    assert units(made.mask) == 4 * levels + 4 * levels + (levels - 1)
    assert units(module(depth, p=2, post_units=1).post) == 1


def test_pre_activation_unit() -> None:
    x = torch.randn(2, 8, 9, 9)
    same, changed = PreActUnit(8, 8).eval(), PreActUnit(8, 16, stride=2).eval()
    assert same.shortcut is None
    for unit in (same, changed):
        randomise(unit)
        a = unit.bn1(x).clamp(min=0)
        y = unit.conv2(unit.bn2(unit.conv1(a)).clamp(min=0))
        y = unit.conv3(unit.bn3(y).clamp(min=0))
        shortcut = x if unit.shortcut is None else unit.shortcut(a)
        torch.testing.assert_close(unit(x), y + shortcut)
    assert changed(x).shape == (2, 16, 5, 5)


def test_resnext_unit_groups_its_middle_convolution() -> None:
    unit = ResNeXtUnit(64, 128, stride=2).eval()
    assert unit.conv2.weight.shape == (64, 2, 3, 3)
    out = unit(torch.randn(2, 64, 7, 7))
    assert out.shape == (2, 128, 4, 4)
    assert out.min() == 0


@pytest.mark.parametrize(
    ("size", "caffe", "torch_"), [(112, 56, 56), (57, 28, 29), (2, 1, 1), (14, 7, 7)]
)
def test_pooling_conventions(size: int, caffe: int, torch_: int) -> None:
    x = torch.arange(float(size)).expand(1, 1, 3, size)
    assert max_pool(3, "caffe")(x).shape[3] == caffe
    assert max_pool(3, "torch")(x).shape[3] == torch_
    # The first window starts at the first pixel, or one before it.
    assert max_pool(3, "caffe")(x)[0, 0, 0, 0] == min(2, size - 1)
    assert max_pool(3, "torch")(x)[0, 0, 0, 0] == 1


@pytest.mark.parametrize(("name", "least"), [("p", 0), ("t", 1), ("r", 1), ("post_units", 0)])
def test_counts_of_units_that_cannot_be_built_are_named(name: str, least: int) -> None:
    values: tuple[Any, ...] = (least - 1, 1.5)
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name}: expected an integer of at least {least}"):
            ran.AttentionModule(8, 1, **{name: value})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"activation": "softmax"}, "activation: expected one of 'mixed', .* got 'softmax'"),
        ({"graph": "other"}, "graph: expected one of 'authors', 'additive', got 'other'"),
        ({"pool": "same"}, "pool: expected one of 'caffe', 'torch', got 'same'"),
        ({"unit": "basic"}, "unit: expected one of 'preact', 'resnext', got 'basic'"),
    ],
)
def test_unknown_values_are_named(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(**option)
    with pytest.raises(ValueError, match=message):
        NetworkSpec(**option)
