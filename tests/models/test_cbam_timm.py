"""CBAM networks by timm's conventions, compiled, exported and with checkpointing."""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn

import ran
from tests.models.helpers import check_export, gradients, statistics, stored
from tests.models.test_cbam import PLANS, every_plan, small


def test_registered_with_timm() -> None:
    model: Any = timm.create_model("cbam_resnet18", num_classes=3, drop_rate=0.5, in_chans=1)
    assert isinstance(model, ran.CbamResNet)
    assert model.drop_rate == 0.5
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 3)
    cfg = model.pretrained_cfg
    assert cfg["architecture"] == "cbam_resnet18"
    assert cfg["input_size"] == (3, 224, 224)
    assert (cfg["mean"], cfg["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)


def test_near_names_are_suggested() -> None:
    with pytest.raises(ValueError, match=r"got 'cbam_resnet5'; did you mean 'cbam_resnet50'"):
        ran.create_model("cbam_resnet5")
    with pytest.raises(ValueError, match=r"option: .* got 'actvation'; did you mean 'activation'"):
        ran.create_model("attention56", actvation="mixed")


def test_features_and_head_make_the_forward() -> None:
    model = small().eval()
    x = torch.randn(2, 3, 40, 40)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 2, 2)
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean(dim=(2, 3)))
    assert torch.equal(model.get_classifier()(pooled), model(x))


def test_classifier_can_be_replaced_and_left_out() -> None:
    model = small().eval()
    x = torch.randn(1, 3, 32, 32)
    model.reset_classifier(6)
    assert model(x).shape == (1, 6)
    model.reset_classifier(0)
    assert model(x).shape == (1, model.num_features)
    model.reset_classifier(0, "")
    assert model(x).shape == (1, model.num_features, 1, 1)
    with pytest.raises(ValueError, match="global_pool: expected 'avg'"):
        model.reset_classifier(3)
    model.reset_classifier(3, "avg")
    assert model(x).shape == (1, 3)


@pytest.mark.parametrize("name", ["cbam_resnet18", "cbam_wide_resnet18_1_5", "cbam_resnet50"])
def test_features_only(name: str) -> None:
    with torch.device("meta"):
        model: Any = timm.create_model(name, features_only=True)
        features = model(torch.empty(1, 3, 224, 224))
    assert [f.shape[1] for f in features] == model.feature_info.channels()
    assert [224 // f.shape[2] for f in features] == model.feature_info.reduction()
    assert model.feature_info.reduction() == [2, 4, 8, 16, 32]


def test_features_only_of_some_stages() -> None:
    whole = small().eval()
    model: Any = ran.create_model(
        "cbam_resnet18", features_only=True, out_indices=(1, 2), reduction=4, **PLANS["basic"]
    )
    model.eval().model.load_state_dict(whole.state_dict(), strict=False)
    assert not any("layer3" in name for name, _ in model.named_parameters())
    x = torch.randn(1, 3, 32, 32)
    _, expected = whole.forward_intermediates(x)
    for got, want in zip(model(x), expected[1:3], strict=True):
        assert torch.equal(got, want)


def test_checkpointing_changes_no_gradient_and_no_statistic() -> None:
    plain = small(PLANS["bottleneck"])
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    x = torch.randn(4, 3, 32, 32)
    expected = gradients(plain, x)
    torch.testing.assert_close(gradients(saving, x), expected, rtol=0, atol=0)
    torch.testing.assert_close(statistics(saving), statistics(plain), rtol=0, atol=0)
    intermediates = saving.forward_intermediates(x, intermediates_only=True)
    # The stem of timm's own loop calls norm and ReLU one after the other, which rounds otherwise.
    torch.testing.assert_close(intermediates[-1], plain.forward_features(x), rtol=1e-4, atol=1e-4)
    saving.set_grad_checkpointing(False)
    assert not any(block.grad_checkpointing for _, block in saving._blocks())


@every_plan
def test_checkpointing_at_least_halves_what_is_stored(plan: dict[str, Any]) -> None:
    plain = small(plan)
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    x = torch.randn(4, 3, 64, 64)
    assert stored(saving, x) < stored(plain, x) / 2


@pytest.mark.parametrize(("kind", "checkpointing"), [("basic", False), ("grouped", True)])
def test_compiles_without_graph_breaks(kind: str, checkpointing: bool) -> None:
    torch.compiler.reset()
    plain = small({**PLANS[kind], "layers": (1, 1, 1, 1)})
    other = copy.deepcopy(plain)
    other.set_grad_checkpointing(checkpointing)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 32, 32)
    expected = gradients(plain, x)
    got = {name.removeprefix("_orig_mod."): g for name, g in gradients(compiled, x).items()}
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(statistics(other), statistics(plain))


def test_exports_with_a_free_batch_and_size() -> None:
    check_export(
        small().eval(), torch.randn(2, 3, 64, 96), [(3, 3, 82, 71), (2, 3, 64, 64), (5, 3, 96, 128)]
    )
