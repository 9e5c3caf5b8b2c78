"""Every name of the registry at its full depth, narrow so that it is quick."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import ran
from ran.models.cbam_registry import CBAM_PLANS
from ran.models.cbam_resnet import CbamGates
from ran.models.origin import Origin
from ran.models.registry import SPECS
from ran.weights.assembly import build_network
from ran_kernels.nn import CBAM
from tests.models.helpers import gradients, randomise

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
SIZES = {"attention92_448": 448}
every_network = pytest.mark.parametrize("name", ran.list_models())


def narrow_options(name: str) -> dict[str, Any]:
    """Of the least width, two channels to seven classes."""
    options: dict[str, Any] = {"num_classes": 7, "in_chans": 2}
    if name in SPECS:
        return {**options, "width_multiplier": 0.01}
    channels = CBAM_PLANS[name].get("channels", (64, 128, 256, 512))
    return {**options, "channels": tuple(width // 4 for width in channels), "reduction": 4}


@cache
def network(name: str) -> Any:
    """Made once for all tests here, which leave its tensors as they are."""
    torch.manual_seed(0)
    return randomise(getattr(ran, name)(**narrow_options(name))).eval()


def images(model: Any, count: int) -> torch.Tensor:
    side = max(32, model.minimum_size)
    return torch.randn(count, 2, side, side)


@every_network
def test_every_parameter_gets_a_gradient(name: str) -> None:
    # In training, as batch normalisation keeps the masks of deep networks from saturating.
    model = copy.deepcopy(network(name)).train()
    found = gradients(model, images(model, 4))
    assert [key for key, gradient in found.items() if not gradient.any()] == []


@every_network
@torch.no_grad()
def test_features_are_those_that_timm_is_told_of(name: str) -> None:
    model = network(name)
    x = images(model, 1)
    features, intermediates = model.forward_intermediates(x)
    for feature, info in zip(intermediates, model.feature_info, strict=True):
        assert feature.shape[1] == info["num_chs"]
        assert feature.shape[2] == -(-x.shape[2] // info["reduction"])
    # timm's loop calls each norm and its ReLU one after the other, which rounds otherwise.
    torch.testing.assert_close(features, model.forward_features(x), rtol=1e-4, atol=1e-4)
    logits = model.forward_head(model.forward_features(x))
    assert logits.shape == (1, 7)
    assert torch.equal(logits, model(x))


@every_network
@torch.no_grad()
def test_a_network_made_alike_takes_its_tensors(name: str) -> None:
    model = network(name)
    assert model.origin == Origin(name, narrow_options(name))
    other = build_network(name, model.origin.options).eval()
    x = images(model, 1)
    assert str(other.load_state_dict(model.state_dict())) == "<All keys matched successfully>"
    assert torch.equal(other(x), model(x))


@every_network
def test_masks_are_shares_and_leave_no_hooks(name: str) -> None:
    model = network(name)
    masks = model.attention_masks(images(model, 1))
    kinds = ran.AttentionModule | CBAM
    named = [key for key, module in model.named_modules() if isinstance(module, kinds)]
    if name in SPECS:
        assert list(masks) == named
    else:
        assert list(masks) == [f"{key}.{gate}" for key in named for gate in CbamGates._fields]
    assert all(mask.min() >= 0 and mask.max() <= 1 for mask in masks.values())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", SPECS)
def test_every_attention_network_takes_the_family_options(name: str) -> None:
    stages = len(SPECS[name].modules)
    options: dict[str, Any] = {
        "activation": "channel",
        "residual": False,
        "pool": "torch",
        "graph": "additive",
        "p": 2,
        "t": 1,
        "r": 2,
        "mask_depths": (1,) * stages,
        "modules": (1,) * stages,
    }
    model: Any = ran.create_model(name, **narrow_options(name), **options)
    assert all(getattr(model.spec, key) == value for key, value in options.items())
    modules = [module for module in model.modules() if isinstance(module, ran.AttentionModule)]
    assert len(modules) == stages
    for module in modules:
        assert (module.activation, module.residual) == ("channel", False)
        assert (len(module.pre), len(module.trunk)) == (2, 1)
        mask: Any = module.mask
        assert (mask.depth, mask.additive, mask.pool.padding) == (1, True, 1)
        assert [len(units) for units in mask.down] == [2]
    assert model(images(model, 2)).shape == (2, 7)


@every_network
def test_timm_is_told_what_each_expects(name: str) -> None:
    model = network(name)
    cfg = model.pretrained_cfg
    cifar = "cifar" in name
    side = 32 if cifar else SIZES.get(name, 224)
    assert cfg["architecture"] == name
    assert cfg["input_size"] == (3, side, side)
    assert (cfg["mean"], cfg["std"]) == (CIFAR if cifar else IMAGENET)
    assert cfg["num_classes"] == (10 if cifar else 1000)
    assert not cfg.get("url")
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert model.get_submodule(cfg["first_conv"]) is first
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert model.get_classifier().out_features == 7
