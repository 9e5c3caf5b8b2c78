"""nn.CBAM beside its own composition where a part was hooked, changed or given other tensors."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils._pytree import tree_map

import ran_kernels
from ran_kernels.nn import CBAM

PARTS = ("", "fc1", "fc2", "conv", "norm")
Calls = list[tuple[Any, ...]]

HOOKS: dict[str, Callable[[nn.Module, Calls], Any]] = {
    "forward": lambda m, calls: m.register_forward_hook(lambda *a: calls.append(a)),
    "forward, keywords": lambda m, calls: m.register_forward_hook(
        lambda *a: calls.append(a), with_kwargs=True
    ),
    "before forward": lambda m, calls: m.register_forward_pre_hook(lambda *a: calls.append(a)),
    "before forward, keywords": lambda m, calls: m.register_forward_pre_hook(
        lambda *a: calls.append(a), with_kwargs=True
    ),
    "backward": lambda m, calls: m.register_full_backward_hook(lambda *a: calls.append(a)),
    "before backward": lambda m, calls: m.register_full_backward_pre_hook(
        lambda *a: calls.append(a)
    ),
    "old backward": lambda m, calls: m.register_backward_hook(lambda *a: calls.append(a)),
    "all modules": lambda m, calls: nn.modules.module.register_module_forward_hook(
        lambda module, *a: calls.append(a) if module is m else None
    ),
    "all modules, before backward": lambda m, calls: (
        nn.modules.module.register_module_full_backward_pre_hook(
            lambda module, *a: calls.append(a) if module is m else None
        )
    ),
}


def module(mlp_conv: bool = False) -> CBAM:
    made = CBAM(16, 4, 3, norm_weight=0.7, mlp_conv=mlp_conv)
    return made.double()


def features() -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randn(2, 16, 5, 4, dtype=torch.float64, generator=random).requires_grad_()


def run(cbam: CBAM, backend: str) -> list[Tensor]:
    """Result, gradients, and buffers afterwards."""
    x = features()
    with ran_kernels.backend(backend):
        out = cbam(x, x * 2)
        out.square().sum().backward()
    assert x.grad is not None
    grads = [p.grad for p in cbam.parameters() if p.grad is not None]
    return [out.detach(), x.grad, *grads, *(b.double() for b in cbam.buffers())]


def same(make: Callable[[], CBAM]) -> None:
    """Asserts that the kernels compute what the composition does."""
    want = run(make(), "reference")
    for got, expected in zip(run(make(), "auto"), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def ran_as_node(cbam: CBAM) -> bool:
    name = type(cbam(features()).grad_fn).__name__
    assert "_Block" in name or "cbam_gate" in name
    return "_Block" in name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part or "itself")
@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_of_every_kind_are_called(kind: str, part: str) -> None:
    cbam, counts = module(), []
    for backend in ("reference", "native"):
        calls: Calls = []
        handle = HOOKS[kind](cbam.get_submodule(part), calls)
        run(cbam, backend)
        handle.remove()
        counts.append(len(calls))
    assert counts[0] == counts[1] == (2 if part.startswith("fc") else 1)
    assert ran_as_node(cbam)


@pytest.mark.parametrize("mlp_conv", [False, True])
def test_the_node_runs_where_nothing_was_changed(mlp_conv: bool) -> None:
    cbam = module(mlp_conv)
    assert ran_as_node(cbam)
    same(lambda: copy.deepcopy(cbam))


def plain_weight(cbam: Any) -> None:
    del cbam.conv.weight
    cbam.conv.weight = torch.ones(1, 2, 3, 3, dtype=torch.float64)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a bias in the convolution": lambda m: setattr(
        m, "conv", nn.Conv2d(2, 1, 3, padding=1).double()
    ),
    "dilation": lambda m: setattr(
        m, "conv", nn.Conv2d(2, 1, 3, padding=2, dilation=2, bias=False).double()
    ),
    "padding": lambda m: setattr(
        m, "conv", nn.Conv2d(2, 1, 3, padding=1, padding_mode="circular", bias=False).double()
    ),
    "statistics left alone": lambda m: setattr(m.norm, "track_running_stats", False),
    "no statistics": lambda m: setattr(
        m, "norm", nn.BatchNorm2d(1, track_running_stats=False).double()
    ),
    "a perceptron's layer wrapped": lambda m: setattr(m, "fc1", nn.Sequential(m.fc1)),
    "another child": lambda m: m.add_module("extra", nn.Identity()),
    "forward of one": lambda m: setattr(m.fc1, "forward", lambda x: x[:, :4] * 3),
    "parametrisation": lambda m: nn.utils.parametrizations.weight_norm(m.fc2),
    "pruning": lambda m: prune.random_unstructured(m.fc1, "weight", 3),
    "a plain tensor": plain_weight,
}


@pytest.mark.parametrize("kind", CHANGES)
def test_changed_parts_take_part(kind: str) -> None:
    def make() -> CBAM:
        torch.manual_seed(0)
        cbam = module()
        CHANGES[kind](cbam)
        return cbam

    same(make)


PERCEPTRONS: dict[str, Callable[[], nn.Conv2d]] = {
    "3×3": lambda: nn.Conv2d(16, 4, 3, padding=1),
    "groups": lambda: nn.Conv2d(16, 4, 1, groups=2),
    "stride": lambda: nn.Conv2d(16, 4, 1, stride=2),
}


@pytest.mark.parametrize("kind", PERCEPTRONS)
def test_perceptrons_of_other_convolutions_take_part(kind: str) -> None:
    cbam = module(mlp_conv=True)
    cbam.fc1 = PERCEPTRONS[kind]().double()
    assert not ran_as_node(cbam)
    same(lambda: copy.deepcopy(cbam))


class Halved(Tensor):
    """A weight kept as its half, that knows linear layers and no transposition."""

    @staticmethod
    def __new__(cls, half: Tensor) -> "Halved":
        return Tensor._make_wrapper_subclass(cls, half.shape, dtype=half.dtype)

    def __init__(self, half: Tensor) -> None:
        self.kept = half

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear:
            x, weight, bias = args
            return nn.functional.linear(x, weight.kept * 2, bias)
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.detach.default:
            return tree_map(lambda t: cls(t.kept) if isinstance(t, cls) else t, args)[0]
        raise NotImplementedError(f"{func} of a halved weight")


def test_weights_that_are_no_plain_tensors() -> None:
    cbam = module().eval()
    with torch.no_grad():
        want = cbam(features())
        for layer in (cbam.fc1, cbam.fc2):
            layer.weight = nn.Parameter(Halved(layer.weight / 2), requires_grad=False)
        with pytest.raises(NotImplementedError):
            cbam.fc1.weight.t()
        torch.testing.assert_close(cbam(features()), want)


def test_quantised_by_torchao() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    cbam = module().float().eval()
    x = features().detach().float()
    want = cbam(x)
    quantization.quantize_(cbam, quantization.Int8WeightOnlyConfig())
    assert type(cbam.fc1.weight) is not nn.Parameter
    torch.testing.assert_close(cbam(x), want, rtol=0.02, atol=0.02)
