"""The public operators as tests of what all of them guarantee call them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ran_kernels
from ran_kernels import reference
from ran_kernels.nn import CBAM

from .cbam_cases import channel_logits, features, spatial_logits
from .harness import LAYOUTS, Place, kernels, outputs_and_grads

Op = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """An operator.

    Attributes:
        of: the operator of `ran_kernels`, or of `ran_kernels.reference`, as a function of tensors.
        arguments: those tensors, from the one that gives the size.
        differentiable: whether the kernels have a derivative.
        triton_alone: whether there are no native kernels.
        promoting: which arguments decide the result's dtype; all if None.
        plain: PyTorch's own expression, where the reference is another one for values that PyTorch
            rounds or overflows on. It says what special values reach.
    """

    of: Callable[[Any], Op]
    arguments: Callable[[Tensor], list[Tensor]]
    differentiable: bool = True
    triton_alone: bool = False
    promoting: tuple[int, ...] | None = None
    plain: Op | None = None

    @property
    def op(self) -> Op:
        return self.of(ran_kernels)

    @property
    def reference(self) -> Op:
        return self.of(reference)

    def inputs(
        self,
        shape: tuple[int, ...] = (2, 3, 5, 7),
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        layout: str = "contiguous",
    ) -> list[Tensor]:
        """The arguments for a big tensor of this shape; those of four dimensions in this layout."""
        made = self.arguments(features(shape, dtype, device))
        return [LAYOUTS[layout](t) if t.dim() == 4 else t for t in made]

    def results(self, op: Op, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Everything the operator computes: its outputs, and gradients where it has them."""
        if not self.differentiable:
            return listed(op(*inputs))
        return [t for part in outputs_and_grads(op, inputs) for t in part]

    def runs_at(self, place: Place) -> bool:
        return not self.triton_alone or place.backend == "triton"


def listed(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def _gate(activation: str, plain: Op | None = None) -> Case:
    return Case(
        lambda module: lambda a, b: module.attention_gate(a, b, activation=activation),
        lambda x: [3 * x.flip(0), x],
        plain=plain,
    )


def _affine(x: Tensor) -> list[Tensor]:
    channels = (1, x.shape[1], 1, 1)
    return [features(channels, seed=seed).flatten().to(x) for seed in (2, 3)]


class _Centred(torch.autograd.Function):
    """``(x - mean) * scale + bias`` of F.batch_norm's x, and F.batch_norm's gradients.

    PyTorch's kernels for CUDA compute this, those for the CPU
    ``x * scale + (bias - mean * scale)``: infinity minus infinity where the weight is infinite.
    """

    @staticmethod
    def forward(ctx: Any, normalised: Tensor, centred: Tensor) -> Tensor:
        return centred

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _centred_norm(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, *, training: bool
) -> Tensor:
    normalised = F.batch_norm(x, mean.clone(), var.clone(), weight, bias, training)
    if training:
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    scale = weight / (var + 1e-5).sqrt()
    centred = (x - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]
    return _Centred.apply(normalised, centred.detach())


def _centred_sum(a: Tensor, b: Tensor, *channels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    return a + b, _centred_norm(a + b, *channels, **options).relu()


_CENTRED = SimpleNamespace(
    batch_norm=_centred_norm,
    batch_norm_relu=lambda *args, **options: _centred_norm(*args, **options).relu(),
    add_batch_norm_relu=_centred_sum,
    batch_norm_add_relu=lambda x, shortcut, *channels, **options: (
        _centred_norm(x, *channels, **options) + shortcut
    ).relu(),
)


def _norm(name: str, images: int, *, training: bool = True) -> Case:
    """A batch normalisation; the running statistics, without gradients, are no arguments."""

    def of(module: Any) -> Op:
        def call(*tensors: Tensor) -> Any:
            channels = tensors[-1].shape[0]
            running = [torch.linspace(a, 2, channels).to(tensors[-1]) for a in (-1, 0.5)]
            return getattr(module, name)(
                *tensors[:images], *running, *tensors[images:], training=training
            )

        return call

    return Case(
        of,
        lambda x: [x, x.flip(0)][:images] + _affine(x),
        promoting=tuple(range(images)),
        plain=of(_CENTRED),
    )


def _conv(x: Tensor) -> list[Tensor]:
    """For a mask's last convolution, of 5 channels to those of x."""
    inner = features((x.shape[0], 5, *x.shape[2:]), seed=1).to(x)
    weight = features((x.shape[1], 5, 1, 1), seed=2).flatten(1).to(x) / 2
    return [inner, weight, _affine(x)[0], x]


OPERATORS = {
    "attention_gate": _gate("mixed"),
    "attention_gate[channel]": _gate("channel", lambda a, b: (1 + F.normalize(a, dim=1)) * b),
    "attention_gate[spatial]": _gate(
        "spatial", lambda a, b: (1 + torch.sigmoid(F.instance_norm(a))) * b
    ),
    "upsample": Case(
        lambda module: lambda x: module.upsample(x, (2 * x.shape[2] - 1, 2 * x.shape[3])),
        lambda x: [x[:, :, ::2, ::2]],
    ),
    "upsample_add": Case(
        lambda module: module.upsample_add, lambda x: [x[:, :, ::2, ::2].clone(), x]
    ),
    "channel_pool": Case(lambda module: module.channel_pool, lambda x: [x]),
    "spatial_pool": Case(lambda module: module.spatial_pool, lambda x: [x, channel_logits(x)]),
    "cbam_gate": Case(
        lambda module: lambda x, c, s, r: module.cbam_gate(x, c, s, shortcut=r, relu=True),
        lambda x: [x, channel_logits(x), spatial_logits(x), x.flip(0)],
    ),
    "affine_relu": Case(
        lambda module: module.affine_relu,
        lambda x: [x, *_affine(x)],
        differentiable=False,
        promoting=(0,),
    ),
    "add_affine_relu": Case(
        lambda module: module.add_affine_relu,
        lambda x: [x, x.flip(0), *_affine(x)],
        differentiable=False,
        promoting=(0, 1),
    ),
    "batch_norm": _norm("batch_norm", 1),
    "batch_norm_relu": _norm("batch_norm_relu", 1),
    "batch_norm_relu[evaluation]": _norm("batch_norm_relu", 1, training=False),
    "add_batch_norm_relu": _norm("add_batch_norm_relu", 2),
    "batch_norm_add_relu": _norm("batch_norm_add_relu", 2),
    "conv_gate": Case(
        lambda module: module.conv_gate, _conv, differentiable=False, triton_alone=True
    ),
}


def _cbam(x: Tensor, shortcut: Tensor) -> Tensor:
    """A whole block; its weights are the same in every call."""
    torch.manual_seed(0)
    block = CBAM(x.shape[1]).to(x)
    nn.init.ones_(block.norm.weight)
    return block(x, shortcut, relu=True)


#: The operators, and CBAM's node, which is made of several.
CALLS = {**OPERATORS, "CBAM": Case(lambda module: _cbam, lambda x: [x, x.flip(0)])}


def _at_places(cases: dict[str, Case]) -> Any:
    """Decorates a test that takes `place` and `name`: every kernel of every case."""
    both = [
        pytest.param(*place.values, name, marks=place.marks, id=f"{place.id}-{name}")
        for place in kernels.args[1]
        for name, case in cases.items()
        if case.runs_at(place.values[0])
    ]
    return pytest.mark.parametrize(("place", "name"), both)


each_operator = _at_places(OPERATORS)
each_call = _at_places(CALLS)
