"""Normalise, clip and convolve as one autograd node that keeps what is normalised alone.

The start of a pre-activation residual unit: He et al., "Identity Mappings in Deep Residual
Networks", ECCV 2016 (arXiv 1603.05027). A convolution keeps its input for its weight's gradient, so
that plain PyTorch holds x and relu(batch_norm(x)) until the backward. This node computes the second
again there, in one pass of 2 S, and lets go of it before the normalisation's own gradients.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import reference
from .batch_norm_node import (
    Channels,
    Kept,
    Needed,
    Options,
    Parts,
    Statistics,
    apply_again,
    gradients,
    keep,
    known,
    normalise,
    of_reference,
    prepare,
    unpack,
    ways_into,
)
from .checks import autocast_dtype, promote, require_device, require_same_image, require_tensor
from .layouts import dense_layout

aten = torch.ops.aten


class Convolution(NamedTuple):
    """What ``torch.nn.functional.conv2d`` takes beside its input, in its order."""

    weight: Tensor  # (O, C / groups, kH, kW)
    bias: Tensor | None = None  # (O,)
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] = 0  # zeros around; no "same" or "valid"
    dilation: int | tuple[int, int] = 1
    groups: int = 1


def batch_norm_relu_conv2d(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    convs: Sequence[Convolution],
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    process_group: Any = None,
    statistics: Statistics | None = None,
) -> tuple[Tensor, ...]:
    """``conv2d(batch_norm_relu(x, …), …)`` for each of `convs`; x alone is kept for it.

    Two passes more in the backward than `batch_norm_relu` and ``conv2d``, 2 S, none where no
    convolution's weight needs a gradient. The convolutions are PyTorch's, and so are their bits.

    Args:
        x: (N, C, H, W).
        running_mean, running_var, weight, bias, training, momentum, eps, process_group,
            statistics: as `batch_norm`.
        convs: at least one convolution of the activation, in the activation's dtype. Under autocast
            they are made in its dtype.

    Returns:
        What each convolution gives, (N, O, H', W').

    Raises:
        TypeError: an argument is no floating-point tensor, number or list of convolutions, a
            stride, padding or dilation no integer or pair of them.
        ValueError: as `batch_norm`, or a convolution does not fit x's channels or dtype.
        BackendError: a backend was asked for that cannot run this.
    """
    channels = Channels(running_mean, running_var, weight, bias, *known(statistics))
    options = Options(True, training, momentum, eps, process_group)
    return _run("batch_norm_relu_conv2d", x, None, channels, convs, options)


def add_batch_norm_relu_conv2d(
    a: Tensor,
    b: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    convs: Sequence[Convolution],
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    process_group: Any = None,
) -> tuple[Tensor, ...]:
    """``s = a + b``, then ``conv2d(batch_norm_relu(s, …), …)`` for each of `convs`; s is kept.

    Of `add_batch_norm_relu` what `batch_norm_relu_conv2d` is of `batch_norm_relu`.

    Args:
        a: (N, C, H, W).
        b: (N, C, H, W).
        running_mean, running_var, weight, bias, convs, training, momentum, eps, process_group: as
            `batch_norm_relu_conv2d`.

    Returns:
        The sum as of `add_batch_norm_relu`, and what each convolution gives, (N, O, H', W').

    Raises: as `batch_norm_relu_conv2d`.
    """
    require_same_image("b", b, "a", a)
    a, b = promote(a, b)
    channels = Channels(running_mean, running_var, weight, bias)
    options = Options(True, training, momentum, eps, process_group)
    return _run("add_batch_norm_relu_conv2d", a, b, channels, convs, options)


def _run(
    name: str,
    x: Tensor,
    addend: Tensor | None,
    channels: Channels,
    convs: Sequence[Convolution],
    options: Options,
) -> tuple[Tensor, ...]:
    x_name = "x" if addend is None else "a"
    backend, options = prepare(name, x_name, x, channels, options)
    convs, forms = require_convolutions(convs, x_name, x)
    if backend is None:
        images = [t for t in (x, addend) if t is not None]
        own = of_reference(options)
        return getattr(reference, name)(*images, *channels[:4], convs=convs, **own)
    # Cast out here, where autograd and FSDP see whose gradients and shards they are.
    operands = [
        None if t is None else t.to(autocast_dtype(t))
        for conv in convs
        for t in (conv.weight, conv.bias)
    ]
    run = _apply if options.process_group is None else _apply_untraced
    return run(dense_layout(x), addend, *channels, backend, *options, forms, *operands)


#: A convolution's stride, padding, dilation and groups.
_Form = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]


def require_convolutions(
    convs: Sequence[Convolution], x_name: str, x: Tensor
) -> tuple[list[Convolution], tuple[_Form, ...]]:
    """`convs` and what of each is no tensor, of checked arguments."""
    if isinstance(convs, Convolution) or not isinstance(convs, (tuple, list)):
        raise TypeError(f"convs: expected a list of Convolution, got {type(convs).__name__}")
    for i, conv in enumerate(convs):
        if not isinstance(conv, (tuple, list)):
            raise TypeError(f"convs[{i}]: expected a Convolution, got {type(conv).__name__}")
    convs = [Convolution(*conv) for conv in convs]
    if not convs:
        raise ValueError("convs: expected at least one convolution, got none")
    return convs, tuple(_form(f"convs[{i}]", conv, x_name, x) for i, conv in enumerate(convs))


def _form(name: str, conv: Convolution, x_name: str, x: Tensor) -> _Form:
    """What of `conv` is no tensor, of checked arguments."""
    weight, bias, groups = conv.weight, conv.bias, conv.groups
    require_tensor(f"{name}.weight", weight)
    if not isinstance(groups, int) or groups < 1:
        raise ValueError(f"{name}.groups: expected a positive integer, got {groups!r}")
    out, of_each = weight.shape[:2]
    if out % groups != 0 or of_each * groups != x.shape[1]:
        raise ValueError(
            f"{name}.weight: expected (O, {x.shape[1]} / groups, kH, kW) for the channels of "
            f"{x_name}, O a multiple of groups={groups}, got {tuple(weight.shape)}"
        )
    for part, value in (("weight", weight), ("bias", bias)):
        if value is None:
            continue
        if part == "bias":
            require_tensor(f"{name}.bias", value, dims=1)
            if value.shape != (out,):
                raise ValueError(
                    f"{name}.bias: expected shape ({out},) (O,) of its weight, "
                    f"got {tuple(value.shape)}"
                )
        require_device(f"{name}.{part}", value, x_name, x)
        if autocast_dtype(value) != autocast_dtype(x):
            raise ValueError(f"{name}.{part}: expected {x.dtype} as {x_name}, got {value.dtype}")
    return (
        _pair(f"{name}.stride", conv.stride, 1),
        _pair(f"{name}.padding", conv.padding, 0),
        _pair(f"{name}.dilation", conv.dilation, 1),
        groups,
    )


def _pair(name: str, value: Any, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    whole = isinstance(pair, (tuple, list)) and all(isinstance(n, int) for n in pair)
    if not whole or len(pair) != 2:
        raise TypeError(f"{name}: expected an integer or a pair of them, got {value!r}")
    if min(pair) < least:
        raise ValueError(f"{name}: expected at least {least}, got {value!r}")
    return (pair[0], pair[1])


class _BatchNormConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, addend: Tensor | None, *arguments: Any) -> Any:
        channels, backend, options, (forms, *operands) = unpack(arguments)
        parts = Parts(backend)
        activation, kept = normalise(parts, x, addend, None, channels, options)
        weights, biases = operands[::2], operands[1::2]
        activation = activation.to(weights[0].dtype)
        outs = [
            aten.convolution(activation, weight, bias, *form[:3], False, [0, 0], form[3])
            for weight, bias, form in zip(weights, biases, forms, strict=True)
        ]
        ctx.parts, ctx.options, ctx.added, ctx.forms = parts, options, addend is not None, forms
        keep(ctx, kept, *weights)
        ctx.set_materialize_grads(False)
        return tuple(outs) if addend is None else (kept.x, *outs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: checkpointing recomputes at the first access
        kept, weights = Kept(*saved[: len(Kept._fields)]), saved[len(Kept._fields) :]
        needs_x, needs_addend, _, _, *needs_affine = ctx.needs_input_grad[:6]
        needed = Needed(needs_x or needs_addend, False, *needs_affine)
        elsewhere, grads = (grads[0], grads[1:]) if ctx.added else (None, grads)
        grad, of_operands = _convolutions_backward(ctx, kept, weights, grads, any(needed))
        found = gradients(ctx.parts, kept, grad, elsewhere, ctx.options, needed)
        return (
            *(found.x if needs_x else None, found.x if needs_addend else None),
            *(None, None, found.weight, found.bias),
            *[None] * (len(ctx.options) + 4),
            *of_operands,
        )


_apply, _apply_untraced = ways_into(_BatchNormConv)


def _convolutions_backward(
    ctx: Any, kept: Kept, weights: Sequence[Tensor], grads: Sequence[Tensor | None], needed: bool
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The activation's gradient where that is `needed`, and those of weights and biases in turn.

    The activation lives as long as this call.
    """
    needs_operands = ctx.needs_input_grad[-2 * len(weights) :]
    incoming = [grad for grad in grads if grad is not None]
    if not incoming:
        return None, [None] * len(needs_operands)
    of_weights = [
        grad is not None and needs for grad, needs in zip(grads, needs_operands[::2], strict=True)
    ]
    dtype = weights[0].dtype
    if any(of_weights):
        activation = apply_again(ctx.parts, kept, incoming[0], ctx.options).to(dtype)
    else:
        activation = torch.empty_like(kept.x, dtype=dtype)  # for its size and its strides
    total = None
    found: list[Tensor | None] = []
    for i, (grad, weight, form) in enumerate(zip(grads, weights, ctx.forms, strict=True)):
        needs_bias = needs_operands[2 * i + 1]
        if grad is None or not (needed or of_weights[i] or needs_bias):
            found += [None, None]
            continue
        of_activation, *of_operands = aten.convolution_backward(
            *(grad, activation, weight, [weight.shape[0]], *form[:3], False, [0, 0], form[3]),
            [needed, of_weights[i], needs_bias],
        )
        found += of_operands
        if needed:
            # Each in x's dtype and then added up, as autograd does around a cast.
            of_activation = of_activation.to(kept.x.dtype)
            total = of_activation if total is None else total.add_(of_activation)
    return total, found
