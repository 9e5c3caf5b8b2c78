"""Batch normalisation with the ReLU and the additions around it, as one autograd node.

Ioffe and Szegedy, "Batch Normalization", ICML 2015 (arXiv 1502.03167). The node keeps what is
normalised and two numbers a channel; plain PyTorch keeps the ReLU's result besides.
"""

from typing import Any

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
    gradients,
    keep,
    known,
    normalise,
    of_reference,
    prepare,
    unpack,
    ways_into,
)
from .checks import promote, require_same_image
from .layouts import dense_layout


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    process_group: Any = None,
    statistics: Statistics | None = None,
) -> Tensor:
    """``torch.nn.functional.batch_norm`` of (N, C, H, W): 3 S forward, 5 S backward.

    Computed in float32, or in float64 where x is of that dtype; mean and variance as exactly as
    from deviations from the mean. The same bits every run, whatever the number of threads.

    Args:
        x: (N, C, H, W).
        running_mean: (C,), updated in training, or None; the mean to normalise with in evaluation.
        running_var: (C,), likewise; updated with the unbiased variance. None exactly where
            `running_mean` is.
        weight: (C,) or None: 1.
        bias: (C,) or None: 0.
        training: normalise with the mean and the biased variance of x over N, H, W, instead of
            the running ones. Either way gradients flow.
        momentum: the share of the batch's statistics in the running ones.
        eps: added to the variance under the root.
        process_group: a `torch.distributed` group over whose processes training takes the
            statistics, as `torch.nn.SyncBatchNorm` does, of batches that may differ in size, and
            may be empty. On any device.
        statistics: mean and biased variance of this process's x, each (C,), where they are known:
            training takes them instead of a pass over x. x's gradient goes through them all the
            same, and none to them.

    Returns:
        (N, C, H, W) in x's dtype, with x's strides where x is contiguous or channels_last.

    Raises:
        TypeError: an argument is no floating-point tensor, or no number.
        ValueError: shapes or devices do not fit, running statistics are missing or want a
            gradient, eps is negative, or training has one value per channel.
        BackendError: a backend was asked for that cannot run this.
    """
    channels = Channels(running_mean, running_var, weight, bias, *known(statistics))
    options = Options(False, training, momentum, eps, process_group)
    return _run("batch_norm", x, None, None, channels, options)


def batch_norm_relu(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    process_group: Any = None,
    statistics: Statistics | None = None,
) -> Tensor:
    """``relu(batch_norm(x, …))``: 3 S forward, 5 S backward, and x alone is kept for it.

    The backward computes the ReLU's mask again from x, to the bits of the forward.

    Args, Returns, Raises: as `batch_norm`.
    """
    channels = Channels(running_mean, running_var, weight, bias, *known(statistics))
    options = Options(True, training, momentum, eps, process_group)
    return _run("batch_norm_relu", x, None, None, channels, options)


def add_batch_norm_relu(
    a: Tensor,
    b: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    process_group: Any = None,
) -> tuple[Tensor, Tensor]:
    """``s = a + b`` and ``relu(batch_norm(s, …))``: 5 S forward, 6 S backward; s alone is kept.

    The end of a pre-activation residual block and the start of the next. The statistics are those
    of the sum as rounded to its dtype, gathered in the pass that writes it; the gradient that comes
    to the sum from elsewhere is added in the pass that makes a's and b's.

    Args:
        a: (N, C, H, W).
        b: (N, C, H, W).
        running_mean, running_var, weight, bias, training, momentum, eps, process_group: as
            `batch_norm`.

    Returns:
        Both (N, C, H, W), in the dtype that PyTorch's promotion gives for a and b, with a's strides
        where a is contiguous or channels_last.

    Raises: as `batch_norm`.
    """
    require_same_image("b", b, "a", a)
    a, b = promote(a, b)
    channels = Channels(running_mean, running_var, weight, bias)
    options = Options(True, training, momentum, eps, process_group)
    return _run("add_batch_norm_relu", a, b, None, channels, options)


def batch_norm_add_relu(
    x: Tensor,
    shortcut: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    process_group: Any = None,
    statistics: Statistics | None = None,
) -> Tensor:
    """``relu(batch_norm(x, …) + shortcut)``: 4 S forward, 7 S backward; x and the result are kept.

    The end of a post-activation residual block.

    Args:
        x: (N, C, H, W).
        shortcut: (N, C, H, W).
        running_mean, running_var, weight, bias, training, momentum, eps, process_group,
            statistics: as `batch_norm`.

    Returns:
        (N, C, H, W), in the dtype that PyTorch's promotion gives for x and shortcut, with x's
        strides where x is contiguous or channels_last.

    Raises: as `batch_norm`.
    """
    require_same_image("shortcut", shortcut, "x", x)
    x, shortcut = promote(x, shortcut)
    channels = Channels(running_mean, running_var, weight, bias, *known(statistics))
    options = Options(True, training, momentum, eps, process_group)
    return _run("batch_norm_add_relu", x, None, shortcut, channels, options)


def _run(
    name: str,
    x: Tensor,
    addend: Tensor | None,
    shortcut: Tensor | None,
    channels: Channels,
    options: Options,
) -> Any:
    x_name = "x" if addend is None else "a"
    backend, options = prepare(name, x_name, x, channels, options)
    if backend is None:
        images = [t for t in (x, addend, shortcut) if t is not None]
        return getattr(reference, name)(*images, *channels[:4], **of_reference(options))
    apply = _apply if options.process_group is None else _apply_untraced
    return apply(dense_layout(x), addend, shortcut, *channels, backend, *options)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        addend: Tensor | None,
        shortcut: Tensor | None,
        *arguments: Any,
    ) -> Any:
        channels, backend, options, _ = unpack(arguments)
        parts = Parts(backend)
        out, kept = normalise(parts, x, addend, shortcut, channels, options)
        ctx.parts, ctx.options, ctx.added = parts, options, addend is not None
        keep(ctx, kept)
        ctx.set_materialize_grads(False)
        return out if addend is None else (kept.x, out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        kept = Kept(*ctx.saved_tensors)  # once: checkpointing recomputes at the first access
        needs_x, needs_addend, needs_shortcut, _, _, *needs_affine = ctx.needs_input_grad[:7]
        found = gradients(
            *(ctx.parts, kept, grads[-1], grads[0] if ctx.added else None, ctx.options),
            Needed(needs_x or needs_addend, needs_shortcut, *needs_affine),
        )
        return (
            *(found.x if needs_x else None, found.x if needs_addend else None),
            *(found.shortcut, None, None, found.weight, found.bias),
            *[None] * (len(ctx.options) + 3),
        )


_apply, _apply_untraced = ways_into(_BatchNorm)
