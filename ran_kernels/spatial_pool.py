"""The pooling of CBAM's spatial attention: maximum and mean over the channels at every position.

Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018 (arXiv 1807.06521).
"""

from typing import Any

import torch
from torch import Tensor

from . import backends, reference
from .cbam_backward import GRAD_CHANNEL, GRAD_X
from .checks import (
    promote,
    require_device,
    require_not_empty,
    require_shape,
    require_tensor,
)
from .library import define


def spatial_pool(x: Tensor, channel_logits: Tensor | None = None) -> Tensor:
    """Maximum, then mean over the channels of x, or of x gated by channel, in one pass.

    Equal to ``torch.cat([y.max(1, keepdim=True).values, y.mean(1, keepdim=True)], 1)`` with
    ``y = x * torch.sigmoid(channel_logits)[:, :, None, None]``, which is never written to memory.
    As there, the maximum's gradient goes to its first channel; a NaN is greater than any number.

    Args:
        x: (N, C, H, W), with at least one channel.
        channel_logits: (N, C); None leaves the gate out.

    Returns:
        (N, 2, H, W), contiguous, in the dtype that PyTorch's promotion gives for both.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: shapes or devices do not fit, or `x` has no channel.
        BackendError: a backend was asked for that cannot run this.
    """
    require_tensor("x", x)
    require_not_empty("x", x, (1,), "at least one channel")
    if channel_logits is not None:
        require_tensor("channel_logits", channel_logits, dims=2)
        require_shape("channel_logits", channel_logits, x.shape[:2], "(N, C) of x")
        require_device("channel_logits", channel_logits, "x", x)
        x, channel_logits = promote(x, channel_logits)
    backend = backends.choose("spatial_pool", x)
    if backend == "reference":
        return reference.spatial_pool(x, channel_logits)
    maps, _ = SPATIAL_POOL[backend](x, channel_logits)
    return maps


def _fake(x: Tensor, channel_logits: Tensor | None) -> tuple[Tensor, Tensor]:
    n, _, height, width = x.shape
    index = x.new_empty((n, height, width), dtype=torch.int32)
    return x.new_empty((n, 2, height, width)), index


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _backward(
    backend: str, ctx: Any, grad_maps: Tensor, grad_index: None
) -> tuple[Tensor | None, Tensor | None]:
    x, channel_logits, index = ctx.saved_tensors
    grad_x = grad_channel = None
    if ctx.needs_input_grad[0]:
        grad_x = GRAD_X[backend](x, None, channel_logits, None, grad_maps, index, None, None, None)
    if ctx.needs_input_grad[1]:
        grad_channel = GRAD_CHANNEL[backend](None, x, channel_logits, None, grad_maps, index)
    return grad_x, grad_channel


#: (maps, index): index is the channel of each maximum, (N, H, W) in int32.
SPATIAL_POOL = define(
    "spatial_pool",
    "(Tensor x, Tensor? channel_logits) -> (Tensor maps, Tensor index)",
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
