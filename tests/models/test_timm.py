"""The conventions of timm, by name and through its own functions."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

import ran
from tests.models.helpers import build, small


def test_networks_are_registered_with_timm() -> None:
    assert set(ran.list_models()) <= set(timm.list_models())
    model = timm.create_model("attention56_cifar", num_classes=3, drop_rate=0.1)
    assert isinstance(model, ran.ResidualAttentionNetwork)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_unknown_names_suggest_near_ones() -> None:
    with pytest.raises(ValueError, match=r"name: .* got 'atention92'; did you mean 'attention92'"):
        ran.create_model("atention92")
    with pytest.raises(ValueError, match=r"got 'vgg'$"):
        ran.create_model("vgg")


def test_pretrained_is_refused() -> None:
    with pytest.raises(ValueError, match="pretrained: expected False, as attention56 has no"):
        timm.create_model("attention56", pretrained=True)


@pytest.mark.parametrize("name", ["attention56", "attention92_cifar_wide"])
def test_timm_finds_what_to_do_to_an_image(name: str) -> None:
    with torch.device("meta"):
        model = build(name)
    cfg = model.pretrained_cfg
    assert cfg["min_input_size"] == (3, model.minimum_size, model.minimum_size)
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == cfg["input_size"]
    assert (config["mean"], config["std"]) == (cfg["mean"], cfg["std"])


def test_features_and_head_make_the_forward() -> None:
    model = small().eval()
    x = torch.randn(2, 3, 32, 32)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 8, 8)
    assert features.min() == 0
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean(dim=(2, 3)))
    assert torch.equal(model.get_classifier()(pooled), model(x))


def test_classifier_can_be_replaced_and_left_out() -> None:
    model = small(num_classes=4).eval()
    x = torch.randn(2, 3, 32, 32)
    model.reset_classifier(6)
    assert model.num_classes == 6
    assert model(x).shape == (2, 6)
    assert not model.head.fc.bias.any()
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model(x).shape == (2, model.num_features)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, model.num_features, 8, 8)
    with pytest.raises(ValueError, match="global_pool: expected 'avg'"):
        model.reset_classifier(3)
    model.reset_classifier(3, "avg")
    assert model(x).shape == (2, 3)
    assert small(num_classes=0)(x).shape == (2, model.num_features)


@pytest.mark.parametrize("name", ["attention56", "attention56_cifar", "attentionnext56"])
def test_features_only(name: str) -> None:
    with torch.device("meta"):
        model: Any = timm.create_model(name, features_only=True)
        x = torch.empty(1, *model.pretrained_cfg["input_size"])
        features = model(x)
    assert len(features) == 5
    assert [f.shape[1] for f in features] == model.feature_info.channels()
    assert [x.shape[2] // f.shape[2] for f in features] == model.feature_info.reduction()


def test_features_only_drops_what_it_does_not_need() -> None:
    whole = small().eval()
    model: Any = small(features_only=True, out_indices=(0, 2))
    model.eval()
    names = [name.removeprefix("model.") for name, _ in model.named_parameters()]
    assert {".".join(name.split(".")[:2]) for name in names} == {
        "stem.conv",
        "stem.norm",
        "stages.0",
        "stages.1",
    }
    model.model.load_state_dict(whole.state_dict(), strict=False)
    x = torch.randn(1, 3, 32, 32)
    stem, stage = model(x)
    assert torch.equal(stem, whole.stem(x))
    assert torch.equal(stage, whole.stages[:2](whole.stem_pool(whole.stem(x))))
    assert model.feature_info.channels() == [8, 24]


@pytest.mark.parametrize(
    ("indices", "taken"), [(None, [0, 1, 2, 3]), (2, [2, 3]), ([0, -1], [0, 3]), ((1,), [1])]
)
def test_intermediates(indices: int | list[int] | None, taken: list[int]) -> None:
    model: Any = small().eval()
    x = torch.randn(1, 3, 32, 32)
    final, chosen = model.forward_intermediates(x, indices=indices)
    assert torch.equal(final, model.forward_features(x))
    _, everything = model.forward_intermediates(x)
    assert len(everything) == len(model.feature_info) == 4
    assert all(torch.equal(a, everything[i]) for a, i in zip(chosen, taken, strict=True))
    early = model.forward_intermediates(
        x, indices=indices, stop_early=True, intermediates_only=True
    )
    assert all(torch.equal(a, b) for a, b in zip(early, chosen, strict=True))
    normed = model.forward_intermediates(x, norm=True, intermediates_only=True)
    assert torch.equal(normed[-1], final)


def test_unknown_intermediates_are_refused() -> None:
    model = small()
    x = torch.randn(1, 3, 32, 32)
    for indices in (0, 5, [4], []):
        with pytest.raises(ValueError, match="indices: expected"):
            model.forward_intermediates(x, indices=indices)
    with pytest.raises(ValueError, match="output_fmt: expected one of 'NCHW', got 'NLC'"):
        model.forward_intermediates(x, output_fmt="NLC")
