"""A deployed network is a module as others are: exported, copied, saved; and what is none."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn

import ran
import ran_kernels
from tests.models.helpers import relative, small

from .deployed import CBAM, NETWORKS, exact, images, shaped, timm_cbam


@pytest.mark.parametrize("name", ["authors", "CBAM bottleneck"])
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_exports(name: str, backend: str) -> None:
    model, x = shaped(NETWORKS[name]()), images()
    deployed = ran.deploy(model, x)
    with ran_kernels.backend(backend):
        program = torch.export.export(
            deployed, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
    targets = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert not any("batch_norm" in target or "mkldnn" in target for target in targets)
    assert any(target.startswith("ran.") for target in targets) == (backend == "native")
    more = images(3)
    assert relative(program.module()(more).double(), exact(model, more)) < 1e-5


def test_copies_and_states() -> None:
    x = images()
    deployed = ran.deploy(shaped(small()), x)
    want = deployed(x)
    other = ran.deploy(shaped(small()), x)
    assert not torch.equal(other(x), want)
    other.load_state_dict(deployed.state_dict())
    for copied in (copy.deepcopy(deployed), other):
        assert torch.equal(copied(x), want)
    moved = copy.deepcopy(deployed).to(torch.float64)
    assert moved.network(x.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("authors", "channels_last"),
        ("features", "contiguous"),
        ("CBAM basic", "channels_last"),
        ("timm", "contiguous"),
    ],
)
def test_a_saved_network_computes_the_same_bits(name: str, layout: str) -> None:
    x = images()
    model = shaped(NETWORKS[name]())
    deployed = ran.deploy(model, x, layout=layout)
    with torch.no_grad():
        pairs = (model, model(x)), (deployed, deployed(x))
    for module, want in pairs:
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        loaded = [torch.load(file, weights_only=False)]
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            loaded.append(pickle.loads(pickle.dumps(module, protocol)))
        with torch.no_grad():
            assert all(torch.equal(other(x), want) for other in loaded)


def test_inference_alone() -> None:
    model = shaped(small())
    deployed = ran.deploy(model)
    assert not deployed.training
    assert not any(parameter.requires_grad for parameter in deployed.parameters())
    assert not deployed(images().requires_grad_()).requires_grad
    assert deployed.eval() is deployed
    with pytest.raises(RuntimeError, match="train: a deployed network is for inference"):
        deployed.train()


def _hooked() -> nn.Module:
    model = small()
    model.stem.register_forward_hook(lambda *_: None)
    return model


def _without_statistics() -> nn.Module:
    return ran.CbamResNet(**CBAM).apply(
        lambda m: (
            m.register_buffer("running_mean", None)
            if isinstance(m, nn.BatchNorm2d) and m.num_features == 64
            else None
        )
    )


def _grouped() -> nn.Module:
    model: Any = timm_cbam()
    model.layer1[0].se.fc1 = nn.Conv2d(64, 4, 1, groups=2)
    return model


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (lambda: 3, {}, TypeError, "model: expected a module, got int"),
        (lambda: nn.Linear(1, 1), {}, TypeError,
         "model: expected a ResidualAttentionNetwork, a CbamResNet or .* got Linear"),
        (lambda: timm.create_model("resnet26", block_args={"attn_layer": "cbam"}), {}, TypeError,
         r"layer1.0.se: expected ran_kernels.nn.CBAM, got CbamModule; ran_kernels.fuse\(model\)"),
        (lambda: timm.create_model("seresnet50"), {}, TypeError,
         "layer1.0.se: expected ran_kernels.nn.CBAM, got SEModule"),
        (_hooked, {}, ValueError, "model: expected no hooks, as .* 'stem' has some"),
        (_without_statistics, {}, ValueError,
         "conv1: expected a normalisation with running statistics, it has none"),
        (_grouped, {}, ValueError,
         r"layer1.0.cbam.fc1: expected a plain 1×1 convolution, got Conv2d\(64, 4"),
        (small, {"dtype": torch.int8}, ValueError, "dtype: expected one of .* got torch.int8"),
        (small, {"layout": "NHWC"}, ValueError, "layout: expected one of .* got 'NHWC'"),
        (small, {"graph": True}, ValueError, "graph: expected a model on CUDA, got one on cpu"),
        (small, {"example": torch.zeros(1, 4, 40, 40)}, ValueError,
         r"x: expected shape \(N, 3, H, W\) .* got \(1, 4, 40, 40\)"),
    ],
    ids=["number", "other", "unfused", "SE", "hooks", "statistics", "groups", "dtype", "layout",
         "graph", "example"],
)  # fmt: skip
def test_bad_arguments_are_named(
    make: Callable[[], Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ran.deploy(make(), **options)
