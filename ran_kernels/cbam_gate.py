"""CBAM's two gates in one pass: features times channel attention times spatial attention.

Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018 (arXiv 1807.06521).
"""

from typing import Any

import torch
from torch import Tensor

from . import backends, reference
from .cbam_backward import GRAD_CHANNEL, GRAD_SPATIAL, GRAD_X
from .checks import promote, require_device, require_shape, require_tensor
from .layouts import dense_layout
from .library import define


def cbam_gate(
    x: Tensor,
    channel_logits: Tensor | None = None,
    spatial_logits: Tensor | None = None,
    *,
    shortcut: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """``relu(x * sc * ss + shortcut)`` in one pass over memory, each factor and term optional.

    ``sc = torch.sigmoid(channel_logits)[:, :, None, None]`` and
    ``ss = torch.sigmoid(spatial_logits)``. What closes a residual block, the shortcut and the
    ReLU, costs one more read instead of two more passes. The backward pass saves the arguments,
    and with `relu` the result; the shortcut's gradient without `relu` is the incoming one itself.

    Args:
        x: (N, C, H, W).
        channel_logits: (N, C), or None.
        spatial_logits: (N, 1, H, W), or None.
        shortcut: (N, C, H, W), or None.
        relu: end with a ReLU.

    Returns:
        (N, C, H, W), in the dtype that PyTorch's promotion gives for all, with x's strides where x
        is contiguous or channels_last.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: shapes or devices do not fit.
        BackendError: a backend was asked for that cannot run this.
    """
    require_tensor("x", x)
    n, c, height, width = x.shape
    arguments = {
        "channel_logits": (channel_logits, (n, c), "(N, C) of x"),
        "spatial_logits": (spatial_logits, (n, 1, height, width), "(N, 1, H, W) of x"),
        "shortcut": (shortcut, (n, c, height, width), "as x"),
    }
    given = {"x": x}
    for name, (tensor, shape, why) in arguments.items():
        if tensor is not None:
            require_tensor(name, tensor, dims=len(shape))
            require_shape(name, tensor, shape, why)
            require_device(name, tensor, "x", x)
            given[name] = tensor
    given = dict(zip(given, promote(*given.values()), strict=True))
    x = given["x"]
    optional = [given.get(name) for name in arguments]
    backend = backends.choose("cbam_gate", x)
    if backend == "reference":
        return reference.cbam_gate(x, *optional[:2], shortcut=optional[2], relu=relu)
    return CBAM_GATE[backend](x, *optional, relu)


def _fake(
    x: Tensor,
    channel_logits: Tensor | None,
    spatial_logits: Tensor | None,
    shortcut: Tensor | None,
    relu: bool,
) -> Tensor:
    return torch.empty_like(dense_layout(x))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, channel_logits, spatial_logits, _, relu = inputs
    gated = channel_logits is not None or spatial_logits is not None
    ctx.save_for_backward(
        x if gated else None, channel_logits, spatial_logits, output if relu else None
    )


def _backward(
    backend: str, ctx: Any, grad: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, None]:
    x, channel_logits, spatial_logits, out = ctx.saved_tensors
    grad_x = grad_channel = grad_spatial = None
    # g: what arrives before the ReLU, computed on the way where the first pass runs anyway.
    g = grad
    if ctx.needs_input_grad[2]:
        grad_spatial, masked = GRAD_SPATIAL[backend](grad, x, channel_logits, spatial_logits, out)
        g = grad if out is None else masked
    elif out is not None:
        g = torch.ops.aten.threshold_backward(grad, out, 0)
    if ctx.needs_input_grad[1]:
        grad_channel = GRAD_CHANNEL[backend](g, x, channel_logits, spatial_logits, None, None)
    if ctx.needs_input_grad[0]:
        grad_x = g
        if x is not None:
            grad_x = GRAD_X[backend](
                x, g, channel_logits, spatial_logits, None, None, None, None, None
            )
    return grad_x, grad_channel, grad_spatial, g if ctx.needs_input_grad[3] else None, None


CBAM_GATE = define(
    "cbam_gate",
    "(Tensor x, Tensor? channel_logits, Tensor? spatial_logits, Tensor? shortcut, bool relu)"
    " -> Tensor",
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
