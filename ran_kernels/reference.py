"""Every operator in plain PyTorch: the definition of correct.

Each function has the signature of the public operator of the same name. The compiled and Triton
kernels are tested against these, and the ``reference`` backend runs them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .layouts import memory_format_of, ordered_as

#: Added to the variance under the root by the "spatial" activation.
SPATIAL_EPS = 1e-5
#: Smallest L2 norm that the "channel" activation divides by.
CHANNEL_EPS = 1e-12


def attention_mask(logits: Tensor, activation: str = "mixed") -> Tensor:
    """The mask M of ``attention_gate``, (N, C, H, W): Wang et al., CVPR 2017, equations 4 to 6."""
    if activation == "mixed":
        return torch.sigmoid(logits)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if activation == "channel":
        shrink = _shrink(wide, (1,))
        z = wide * shrink
        norm = torch.linalg.vector_norm(z, dim=1, keepdim=True)
        return (z / torch.maximum(norm, CHANNEL_EPS * shrink)).to(logits.dtype)
    if activation == "spatial":
        # From the first value, so that a constant map is exactly 0: the mean's rounding would be
        # multiplied by up to 1 / sqrt(SPATIAL_EPS). A quarter, so that no difference overflows.
        z = wide * 0.25 - wide[:, :, :1, :1].detach() * 0.25
        shrink = _shrink(z, (2, 3))
        z = z * shrink
        z = z - z.mean((2, 3), keepdim=True)
        eps = (SPATIAL_EPS / 16) * shrink * shrink
        variance = z.square().mean((2, 3), keepdim=True)
        return torch.sigmoid(z * torch.rsqrt(variance + eps)).to(logits.dtype)
    raise ValueError(f"activation: expected 'mixed', 'channel' or 'spatial', got {activation!r}")


def _shrink(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """A power of two for each group: 1, or small where the squares of `values` may overflow."""
    if 0 in values.shape:
        return values.new_ones(())
    largest = values.detach().abs().amax(dims, keepdim=True)
    limit, small = (2.0**60, 2.0**-90) if values.dtype == torch.float32 else (2.0**480, 2.0**-640)
    one = torch.ones_like(largest)
    return torch.where(largest > limit, one * small, one)


def attention_gate(
    logits: Tensor, trunk: Tensor, *, residual: bool = True, activation: str = "mixed"
) -> Tensor:
    """``(1 + M) * trunk`` with ``residual`` (equation 3), ``M * trunk`` without (equation 1)."""
    mask = attention_mask(logits, activation)
    gated = (1 + mask) * trunk if residual else mask * trunk
    if activation == "mixed":
        return ordered_as(gated, torch.empty_like(trunk, device="meta"))
    return _laid_out(gated, trunk)


def conv_gate(
    x: Tensor, weight: Tensor, bias: Tensor | None, trunk: Tensor, *, residual: bool = True
) -> Tensor:
    """``attention_gate`` of a 1×1 convolution's output, with weight (C, K) and bias (C,)."""
    logits = F.conv2d(x, weight[:, :, None, None], bias)
    return _laid_out(attention_gate(logits, trunk, residual=residual), trunk)


def upsample(x: Tensor, size: tuple[int, int], *, align_corners: bool = True) -> Tensor:
    """Bilinear interpolation of (N, C, h, w) to (N, C, *size)."""
    resized = F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)
    return _laid_out(resized, x)


def upsample_add(x: Tensor, skip: Tensor, *, align_corners: bool = True) -> Tensor:
    """Bilinear interpolation of (N, C, h, w) to the size of skip (N, C, H, W), plus skip."""
    resized = upsample(x, (skip.shape[2], skip.shape[3]), align_corners=align_corners)
    return _laid_out(resized + skip, skip)


def channel_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and maximum over H×W of (N, C, H, W), each (N, C).

    The maximum's gradient goes to its first position in reading order, a NaN wins.
    """
    return x.mean((2, 3)), x.flatten(2).max(dim=2).values


def spatial_pool(x: Tensor, channel_logits: Tensor | None = None) -> Tensor:
    """Maximum, then mean over the channels of x or of x·sigmoid(channel_logits): (N, 2, H, W).

    The maximum's gradient goes to its first channel, a NaN wins.
    """
    if channel_logits is not None:
        x = x * torch.sigmoid(channel_logits)[:, :, None, None]
    return torch.cat([x.max(dim=1, keepdim=True).values, x.mean(1, keepdim=True)], dim=1)


def cbam_gate(
    x: Tensor,
    channel_logits: Tensor | None = None,
    spatial_logits: Tensor | None = None,
    *,
    shortcut: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """``relu(x * sigmoid(channel_logits) * sigmoid(spatial_logits) + shortcut)``, each optional."""
    out = x
    if channel_logits is not None:
        out = out * torch.sigmoid(channel_logits)[:, :, None, None]
    if spatial_logits is not None:
        out = out * torch.sigmoid(spatial_logits)
    if shortcut is not None:
        out = out + shortcut
    return _laid_out(out.relu() if relu else out, x)


def add_affine_relu(a: Tensor, b: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """``a + b``, and ``relu(scale * (a + b) + shift)`` with scale and shift (C,)."""
    total = _laid_out(a + b, a)
    return total, affine_relu(total, scale, shift)


def affine_relu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``relu(scale * x + shift)`` in x's dtype, with scale and shift (C,)."""
    out = torch.relu(x * scale[:, None, None] + shift[:, None, None]).to(x.dtype)
    return _laid_out(out, x)


def _laid_out(result: Tensor, like: Tensor) -> Tensor:
    """`result` in the layout that results take from `like`, where the expression gave another."""
    return result.contiguous(memory_format=memory_format_of(like))
