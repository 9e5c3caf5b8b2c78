"""Every operator in plain PyTorch: the definition of correct.

Each function has the signature of the public operator of the same name. The compiled and Triton
kernels are tested against these, and the ``reference`` backend runs them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

#: Added to the variance under the root by the "spatial" activation.
SPATIAL_EPS = 1e-5
#: Smallest L2 norm that the "channel" activation divides by.
CHANNEL_EPS = 1e-12


def attention_mask(logits: Tensor, activation: str = "mixed") -> Tensor:
    """The mask M of ``attention_gate``, (N, C, H, W): Wang et al., CVPR 2017, equations 4 to 6."""
    if activation == "mixed":
        return torch.sigmoid(logits)
    if activation == "channel":
        return F.normalize(logits, p=2.0, dim=1, eps=CHANNEL_EPS)
    if activation == "spatial":
        variance, mean = torch.var_mean(logits, dim=(2, 3), correction=0, keepdim=True)
        return torch.sigmoid((logits - mean) * torch.rsqrt(variance + SPATIAL_EPS))
    raise ValueError(f"activation: expected 'mixed', 'channel' or 'spatial', got {activation!r}")


def attention_gate(
    logits: Tensor, trunk: Tensor, *, residual: bool = True, activation: str = "mixed"
) -> Tensor:
    """``(1 + M) * trunk`` with ``residual`` (equation 3), ``M * trunk`` without (equation 1)."""
    mask = attention_mask(logits, activation)
    return (1 + mask) * trunk if residual else mask * trunk


def conv_gate(
    x: Tensor, weight: Tensor, bias: Tensor | None, trunk: Tensor, *, residual: bool = True
) -> Tensor:
    """``attention_gate`` of a 1×1 convolution's output, with weight (C, K) and bias (C,)."""
    return attention_gate(F.conv2d(x, weight[:, :, None, None], bias), trunk, residual=residual)


def upsample(x: Tensor, size: tuple[int, int], *, align_corners: bool = True) -> Tensor:
    """Bilinear interpolation of (N, C, h, w) to (N, C, *size)."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def upsample_add(x: Tensor, skip: Tensor, *, align_corners: bool = True) -> Tensor:
    """Bilinear interpolation of (N, C, h, w) to the size of skip (N, C, H, W), plus skip."""
    return upsample(x, (skip.shape[2], skip.shape[3]), align_corners=align_corners) + skip


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
    if channel_logits is not None:
        x = x * torch.sigmoid(channel_logits)[:, :, None, None]
    if spatial_logits is not None:
        x = x * torch.sigmoid(spatial_logits)
    if shortcut is not None:
        x = x + shortcut
    return x.relu() if relu else x


def add_affine_relu(a: Tensor, b: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """``a + b``, and ``relu(scale * (a + b) + shift)`` with scale and shift (C,)."""
    total = a + b
    return total, affine_relu(total, scale, shift)


def affine_relu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``relu(scale * x + shift)`` in x's dtype, with scale and shift (C,)."""
    return torch.relu(x * scale[:, None, None] + shift[:, None, None]).to(x.dtype)
