"""Batch normalisation and CBAM as one autograd node that keeps what is normalised alone.

The result of a normalisation without a ReLU is kept by CBAM only, so computing it again in the
backward is all that it takes to do without it.
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
from .cbam_block import Norm, Perceptron, block_options, cbam_block, gated
from .cbam_block import Options as BlockOptions
from .cbam_block import gradients as cbam_gradients
from .layouts import dense_layout


def batch_norm_cbam(
    x: Tensor,
    shortcut: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    block: tuple[Perceptron, Tensor, Norm, BlockOptions],
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    process_group: Any = None,
    statistics: Statistics | None = None,
) -> Tensor:
    """``cbam_block(batch_norm(x, …), shortcut, *block)``; x and small maps alone are kept for it.

    One pass more in the backward than the two one by one, 2 S.

    Args:
        x, shortcut: (N, C, H, W), of one dtype.
        running_mean, running_var, weight, bias, training, momentum, eps, process_group,
            statistics: as `ran_kernels.batch_norm`.
        block: what `cbam_block` takes after its images.

    Raises: as `ran_kernels.batch_norm`.
    """
    channels = Channels(running_mean, running_var, weight, bias, *known(statistics))
    options = Options(False, training, momentum, eps, process_group)
    backend, options = prepare("batch_norm", "x", x, channels, options)
    if backend is None:
        y = reference.batch_norm(x, *channels[:4], **of_reference(options))
        return cbam_block(y, shortcut, *block)
    perceptron, conv, norm, more = block
    run = _apply if options.process_group is None else _apply_untraced
    flat = (*perceptron, conv, *norm, *more)
    out: Tensor = run(dense_layout(x), shortcut, *channels, backend, *options, *flat)
    return out


class _BatchNormBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shortcut: Tensor | None, *arguments: Any) -> Tensor:
        channels, backend, options, block = unpack(arguments)
        parts = Parts(backend)
        y, kept = normalise(parts, x, None, None, channels, options)
        out, saved = gated(y, shortcut, *block, keep=any(ctx.needs_input_grad))
        ctx.parts, ctx.options, ctx.block = parts, options, block_options(block)
        keep(ctx, kept, *saved)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: checkpointing recomputes at the first access
        kept, saved = Kept(*saved[: len(Kept._fields)]), saved[len(Kept._fields) :]
        between = len(Channels._fields) + 1 + len(Options._fields)  # what stands before CBAM's own
        needs_x, needs_shortcut, _, _, *needs_affine = ctx.needs_input_grad[:6]
        needed = Needed(needs_x, False, *needs_affine)
        y = apply_again(ctx.parts, kept, grad, ctx.options)
        of_block = (any(needed), needs_shortcut, *ctx.needs_input_grad[2 + between :])
        grad_y, grad_shortcut, *others = cbam_gradients(y, saved, ctx.block, grad, of_block)
        del y
        found = gradients(ctx.parts, kept, grad_y, None, ctx.options, needed)
        return (
            *(found.x, grad_shortcut, None, None, found.weight, found.bias),
            *[None] * (between - 4),
            *others,
        )


_apply, _apply_untraced = ways_into(_BatchNormBlock)
