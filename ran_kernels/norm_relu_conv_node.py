"""The autograd node of 1×1 convolutions that take the normalisation before them in.

What it computes, norm_relu_conv_parts.py says.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .batch_norm_conv import Convolution
from .batch_norm_node import (
    Channels,
    Kept,
    Needed,
    Options,
    Parts,
    Statistics,
    gradients,
    keep,
    measured,
    norm_of,
    unpack,
    ways_into,
)
from .checks import autocast_dtype
from .norm_relu_conv_parts import (
    NORM_RELU_CONV,
    NORM_RELU_CONV_GATE_GRAD,
    NORM_RELU_CONV_GRAD,
    NORM_RELU_CONV_REDUCE,
    NORM_RELU_CONV_WEIGHT,
)


class Measured(NamedTuple):
    """A convolution's result, and what the next normalisation asks of it in training."""

    value: Tensor  # (N, O, H', W')
    statistics: Statistics | None  # mean and biased variance (O,) of this process's batch


class Beside(NamedTuple):
    """What a convolution's result goes into, of its shape; at most one of the two."""

    addend: Tensor | None
    trunk: Tensor | None
    residual: bool  # of the trunk's gate


def run(
    x: Tensor,
    beside: Beside,
    channels: Channels,
    backend: str,
    options: Options,
    convs: Sequence[Convolution],
    measure: bool,
) -> tuple[Tensor, list[Measured]]:
    # Cast out here, where autograd and FSDP see whose gradients and shards they are.
    weights = [conv.weight.to(autocast_dtype(conv.weight)) for conv in convs]
    strides = tuple(conv.stride[0] for conv in convs)  # type: ignore[index]
    way = _apply if options.process_group is None else _apply_untraced
    x = x.contiguous(memory_format=torch.channels_last)
    x, *results = way(x, *beside, *channels, backend, *options, strides, measure, *weights)
    if not measure:
        return x, [Measured(y, None) for y in results]
    return x, [Measured(y, (mean, variance)) for y, mean, variance in _threes(results)]


def _threes(results: Sequence[Any]) -> list[tuple[Any, Any, Any]]:
    return list(zip(results[::3], results[1::3], results[2::3], strict=True))


class _NormReluConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        addend: Tensor | None,
        trunk: Tensor | None,
        residual: bool,
        *arguments: Any,
    ) -> Any:
        channels, backend, options, (strides, measure, *weights) = unpack(arguments)
        parts = Parts(backend)
        kept = Kept(x, *[None] * 6)  # type: ignore[arg-type]
        if options.relu:
            kept = measured(parts, x, None, channels, options)
        norm = norm_of(kept)
        results: list[Tensor] = []
        for weight, stride in zip(weights, strides, strict=True):
            y, *statistics = NORM_RELU_CONV["triton"](
                *(x, *norm, weight.flatten(1), addend, trunk),
                *(stride, residual, options.eps, measure),
            )
            results += [y, *statistics] if measure else [y]
        if measure:
            ctx.mark_non_differentiable(*(t for _, *pair in _threes(results) for t in pair))
        ctx.parts, ctx.options, ctx.strides, ctx.measure = parts, options, strides, measure
        ctx.residual = residual
        keep(ctx, kept, trunk, *weights)
        ctx.set_materialize_grads(False)
        return x, *results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: checkpointing recomputes at the first access
        kept, (trunk, *weights) = Kept(*saved[: len(Kept._fields)]), saved[len(Kept._fields) :]
        options: Options = ctx.options
        elsewhere, *of_results = grads
        of_results = of_results[:: 3 if ctx.measure else 1]
        norm = norm_of(kept)
        grad_addend, grad_trunk = of_results[0], None
        if trunk is not None and grad_addend is not None:
            of_logits, grad_trunk = NORM_RELU_CONV_GATE_GRAD["triton"](
                *(grad_addend, kept.x, *norm, weights[0].flatten(1), trunk),
                *(ctx.strides[0], ctx.residual, options.eps),
            )
            of_results = [of_logits]
        products = [
            _Product(grad, weight.flatten(1), stride)
            for grad, weight, stride in zip(of_results, weights, ctx.strides, strict=True)
            if grad is not None
        ]
        needs_x, needs_addend, needs_trunk, *_ = ctx.needs_input_grad
        needs_affine = ctx.needs_input_grad[6:8]
        of_weights = [
            grad is not None and needs
            for grad, needs in zip(of_results, ctx.needs_input_grad[-len(weights) :], strict=True)
        ]
        grad_weights = [
            NORM_RELU_CONV_WEIGHT["triton"](grad, kept.x, *norm, stride, options.eps).view_as(
                weight
            )
            if needs
            else None
            for grad, weight, stride, needs in zip(
                of_results, weights, ctx.strides, of_weights, strict=True
            )
        ]
        needed = Needed(needs_x, False, *needs_affine)
        if not any(needed):
            grad_x = grad_weight = grad_bias = None
        elif options.relu:
            found = _normalised(ctx.parts, kept, products, elsewhere, options, needed)
            grad_x, grad_weight, grad_bias = found.x, found.weight, found.bias
        else:
            grad_x, grad_weight, grad_bias = _added(kept.x, products, elsewhere), None, None
        return (
            grad_x if needs_x else None,
            grad_addend if needs_addend else None,
            grad_trunk if needs_trunk else None,
            *(None, None, None, grad_weight, grad_bias, None, None),
            *[None] * (len(options) + 3),
            *grad_weights,
        )


_apply, _apply_untraced = ways_into(_NormReluConv)


class _Product(NamedTuple):
    """What comes to the operand of a convolution: its result's gradient, through the matrix."""

    grad: Tensor
    conv: Tensor  # (O, C)
    stride: int


def _added(x: Tensor, products: Sequence[_Product], total: Tensor | None) -> Tensor | None:
    """`total` and what comes to a convolved image of x's size from all products."""
    for grad, conv, stride in products:
        none = [None] * 6
        total = NORM_RELU_CONV_GRAD["triton"](
            grad, None, total, *none, 1, conv, x.shape[2:], stride, 0.0
        )
    return total


def _normalised(
    parts: Parts,
    kept: Kept,
    products: Sequence[_Product],
    elsewhere: Tensor | None,
    options: Options,
    needed: Needed,
) -> Any:
    """As `gradients`, of what comes to the activation from the products."""
    if len(products) == 1:
        (product,) = products
        return gradients(_Inside(parts, product), kept, product.grad, elsewhere, options, needed)
    total = _added(kept.x, products, None)
    total = total if total is None else total.to(kept.x.dtype)
    return gradients(parts, kept, total, elsewhere, options, needed)


class _Inside(Parts):
    """Passes whose gradient is that of a convolution's result, multiplied in each of them again.

    Unless that reads more than to write the product down once, as where a convolution has more
    channels than it reads.
    """

    def __init__(self, parts: Parts, product: _Product) -> None:
        self._parts, self._product = parts, product
        out, channels = product.conv.shape
        # The passes read 2 O + 3 C channels of each position, against O + 5 C with g written down.
        self._keeps = out >= 2 * channels
        self._masked: Tensor | None = None

    def incoming(self, grad: Tensor, x: Tensor) -> Tensor:
        return grad

    def reduce(
        self, grad: Tensor, x: Tensor, out: None, *norm: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        *channels, eps, _ = norm
        _, conv, stride = self._product
        masked, *sums = NORM_RELU_CONV_REDUCE["triton"](
            grad, x, *channels, conv, stride, eps, self._keeps
        )
        self._masked = masked if self._keeps else None
        return masked, sums[0], sums[1]

    def grad(self, grad: Tensor, x: Tensor, addend: Tensor | None, *norm: Any) -> Tensor:
        *channels, count, eps, _ = norm
        if self._masked is not None:
            return self._parts.grad(self._masked, x, addend, *channels, count, eps, False)
        _, conv, stride = self._product
        return NORM_RELU_CONV_GRAD["triton"](
            grad, x, addend, *channels, count, conv, x.shape[2:], stride, eps
        )
