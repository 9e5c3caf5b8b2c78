"""Sums and normalisations in one pass from unit to unit: networks compute what their layers say."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ran
import ran_kernels
from ran.models import sums
from ran.models.units import PreActUnit, ResNeXtUnit, unit_sequence
from ran_kernels.nn import CBAM

from .helpers import gradients, randomise, small, statistics, stored

PLAN = {"layers": (2, 1, 1, 1), "channels": (16, 16, 32, 32)}
FAMILIES: dict[str, Callable[..., Any]] = {
    "attention": small,
    "additive": lambda: small(graph="additive"),
    "attentionnext": lambda: small(unit="resnext", widths=(64, 128), tail_width=128),
    "CBAM basic": lambda: ran.create_model("cbam_resnet18", **PLAN),
    "CBAM bottleneck": lambda: ran.create_model("cbam_resnet50", **PLAN),
}
each_family = pytest.mark.parametrize("family", FAMILIES)
X = torch.randn(4, 3, 40, 44, generator=torch.Generator().manual_seed(0))


def _results(model: nn.Module, backend: str = "auto") -> dict[str, Tensor]:
    with ran_kernels.backend(backend):
        return {**gradients(model, X), **statistics(model)}


@each_family
@pytest.mark.parametrize("recompute", [False, "norms"])
def test_a_training_step_is_that_of_the_reference(family: str, recompute: bool | str) -> None:
    plain = randomise(FAMILIES[family]()).double()
    ours = copy.deepcopy(plain)
    ours.set_grad_checkpointing(recompute)
    with torch.no_grad():
        x = X.double()
    found = []
    for model, backend in ((plain, "reference"), (ours, "auto")):
        with ran_kernels.backend(backend):
            found.append({**gradients(model, x), **statistics(model), "out": model.eval()(x)})
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@each_family
def test_what_is_computed_again_has_the_same_bits_and_is_not_stored(family: str) -> None:
    stores = randomise(FAMILIES[family]())
    again = copy.deepcopy(stores)
    again.set_grad_checkpointing("norms")
    sizes = stored(copy.deepcopy(again), X), stored(copy.deepcopy(stores), X)
    # The norm before CBAM is PyTorch's layer where it is not computed again.
    rtol, atol = (1e-4, 1e-4) if "CBAM" in family else (0.0, 0.0)
    torch.testing.assert_close(_results(again), _results(stores), rtol=rtol, atol=atol)
    assert sizes[0] < (0.98 if "CBAM" in family else 0.8) * sizes[1]  # weights included
    again.set_grad_checkpointing(False)
    assert stored(again, X) == sizes[1]


@each_family
def test_norms_that_average_all_batches_are_computed_again(family: str) -> None:
    """With a momentum of None the layer itself runs, the second time too."""
    stores = randomise(FAMILIES[family]())
    for module in stores.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    again = copy.deepcopy(stores)
    again.set_grad_checkpointing()
    torch.testing.assert_close(_results(again), _results(stores), rtol=0, atol=0)


@each_family
def test_hooks_anywhere_see_what_they_saw(family: str) -> None:
    """A hook on every module, which is how profilers, probes and pruning look on."""
    model = randomise(FAMILIES[family]()).eval()
    want = model(X)
    seen: set[nn.Module] = set()
    for module in model.modules():
        module.register_forward_hook(lambda module, *_: seen.add(module))
    torch.testing.assert_close(model(X), want, rtol=1e-5, atol=1e-5)
    # Units call PyTorch's ReLU, whatever timm's blocks hold, and stages are walked through.
    kinds = (nn.Conv2d, nn.BatchNorm2d, PreActUnit, ResNeXtUnit, CBAM)
    assert {m for m in model.modules() if isinstance(m, kinds)} <= seen


def test_a_hook_on_one_unit_changes_what_follows() -> None:
    units = unit_sequence("preact", 8, 3)
    x = torch.randn(2, 8, 5, 6)
    units[1].register_forward_hook(lambda module, given, out: 2 * out)
    a, b, c = units
    assert isinstance(b, PreActUnit)
    got = sums.value_of(sums.chained(units, x))
    torch.testing.assert_close(got, c(2 * b.forward(a(x))))


def test_a_sum_is_made_once_with_the_normalisation_that_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    units = unit_sequence("preact", 8, 3).eval()
    x = torch.randn(2, 8, 5, 6)
    want = x
    for unit in units:
        want = unit(want)
    calls: list[str] = []
    for name in ("norm_relu_conv", "add_norm_relu_conv"):
        plain = getattr(sums, name)

        def counted(*args: Any, _name: str = name, _plain: Any = plain, **options: Any) -> Any:
            calls.append(_name)
            return _plain(*args, **options)

        monkeypatch.setattr(sums, name, counted)
    out = sums.chained(units, x)
    assert isinstance(out, sums.Sum)
    assert calls == ["norm_relu_conv", "add_norm_relu_conv", "add_norm_relu_conv"]
    torch.testing.assert_close(out.value, want)
    assert out.value is out.value


def test_a_unit_with_another_forward_is_called() -> None:
    class Louder(PreActUnit):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    units = nn.Sequential(PreActUnit(8, 8), Louder(8, 8), PreActUnit(8, 8)).eval()
    x = torch.randn(2, 8, 5, 6)
    torch.testing.assert_close(sums.value_of(sums.chained(units, x)), units(x))


def test_a_layer_put_into_the_stem_is_called() -> None:
    model: Any = small().eval()
    plain = model.forward_intermediates(X, indices=[0], intermediates_only=True)[0]
    model.stem.append(nn.Tanh())
    got = model.forward_intermediates(X, indices=[0], intermediates_only=True)[0]
    assert isinstance(plain, Tensor)
    torch.testing.assert_close(got, plain.tanh())
    model.stem.act = nn.GELU()
    got = model.forward_intermediates(X, indices=[0], intermediates_only=True)[0]
    stem: Any = model.stem
    torch.testing.assert_close(got, F.gelu(stem.norm(stem.conv(X))).tanh())


@each_family
def test_what_is_no_way_to_checkpoint_is_refused(family: str) -> None:
    model = FAMILIES[family]()
    with pytest.raises(ValueError, match="enable: expected one of False, True, 'norms', got 'all'"):
        model.set_grad_checkpointing("all")
