"""Soft masks and the features around them."""

import pytest
import torch
from torch import nn

from ran import AttentionModule
from tests.models.helpers import randomise, small


def test_masks_come_by_module_name_in_order() -> None:
    model = small()
    masks = model.attention_masks(torch.randn(2, 3, 32, 32))
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == {
        "stages.0.attention1": (2, 16, 16, 16),
        "stages.1.attention1": (2, 24, 8, 8),
        "stages.1.attention2": (2, 24, 8, 8),
    }
    modules = [name for name, m in model.named_modules() if isinstance(m, AttentionModule)]
    assert list(masks) == modules


def test_masks_are_those_of_the_forward() -> None:
    model = randomise(small()).eval()
    x = torch.randn(2, 3, 32, 32)
    seen: list[torch.Tensor] = []
    branch = model.get_submodule("stages.1.attention1.mask")
    hook = branch.register_forward_hook(lambda module, args, logits: seen.append(logits))
    model(x)
    hook.remove()
    masks = model.attention_masks(x)
    torch.testing.assert_close(masks["stages.1.attention1"], seen[0].sigmoid())
    assert masks["stages.1.attention1"].std() > 0.1


def test_features_before_and_after_the_mask() -> None:
    x = torch.randn(1, 3, 32, 32)
    for residual in (True, False):
        model = randomise(small(residual=residual)).eval()
        for name, (trunk, mask, gated) in model.attention_features(x).items():
            torch.testing.assert_close(gated, (1 + mask) * trunk if residual else mask * trunk)
            module = model.get_submodule(name)
            assert isinstance(module, AttentionModule)
            assert module.post(gated).shape == trunk.shape


def test_masks_leave_the_network_as_it_was() -> None:
    model = small()
    frozen = model.stages[0]
    frozen.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(2, 3, 32, 32)
    masks = model.attention_masks(x)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert model.training
    assert not any(module.training for module in frozen.modules())
    assert all(module.training for module in model.stages[1].modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(mask.requires_grad for mask in masks.values())
    # In evaluation mode the batch's other images do not shape a mask.
    alone = model.attention_masks(x[:1])
    for name, mask in masks.items():
        torch.testing.assert_close(mask[:1], alone[name])


def test_masks_leave_the_modes_after_an_error() -> None:
    class Failing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("fails")

    model = small()
    model.stages[1].add_module("unit", Failing())
    with pytest.raises(RuntimeError, match="fails"):
        model.attention_masks(torch.randn(1, 3, 32, 32))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("activation", "lowest"), [("mixed", 0.0), ("spatial", 0.0), ("channel", -1.0)]
)
def test_range_of_the_masks(activation: str, lowest: float) -> None:
    model = randomise(small(activation=activation))
    masks = model.attention_masks(torch.randn(2, 3, 32, 32)).values()
    assert all(mask.min() >= lowest and mask.max() <= 1 for mask in masks)
    # Channel attention divides by a norm, which keeps signs: the mask is shown as it multiplies.
    assert any(mask.min() < 0 for mask in masks) == (activation == "channel")
