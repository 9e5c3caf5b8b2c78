"""Every operator in plain PyTorch: the definition of correct.

Each function has the signature of the public operator of the same name. The compiled and Triton
kernels are tested against these, and the ``reference`` backend runs them.
"""

from collections.abc import Sequence
from typing import Any

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
        # Divided: rsqrt's derivative has its cube, which underflows long before the squares do.
        return torch.sigmoid(z / torch.sqrt(variance + eps)).to(logits.dtype)
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
) -> Tensor:
    """``torch.nn.functional.batch_norm`` of (N, C, H, W), the channels' numbers of any dtype."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    running = (running_mean, running_var)
    mean, var, weight, bias = (None if t is None else t.to(wide) for t in (*running, weight, bias))
    out = F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)
    for kept, updated in zip(running, (mean, var), strict=True):
        if training and kept is not None and updated is not None and updated is not kept:
            kept.copy_(updated)
    return _laid_out(out, x)


def batch_norm_relu(x: Tensor, *channels: Tensor | None, **options: Any) -> Tensor:
    """``relu(batch_norm(x, …))``."""
    return torch.relu(batch_norm(x, *channels, **options))


def add_batch_norm_relu(
    a: Tensor, b: Tensor, *channels: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """``a + b``, and ``relu(batch_norm(a + b, …))``."""
    total = _laid_out(a + b, a)
    return total, batch_norm_relu(total, *channels, **options)


def batch_norm_add_relu(
    x: Tensor, shortcut: Tensor, *channels: Tensor | None, **options: Any
) -> Tensor:
    """``relu(batch_norm(x, …) + shortcut)``."""
    return _laid_out(torch.relu(batch_norm(x, *channels, **options) + shortcut), x)


def batch_norm_relu_conv2d(
    x: Tensor, *channels: Tensor | None, convs: Sequence[Any], **options: Any
) -> tuple[Tensor, ...]:
    """``conv2d(batch_norm_relu(x, …), …)`` for each of `convs`, tuples of the other arguments."""
    activation = batch_norm_relu(x, *channels, **options)
    return tuple(F.conv2d(activation, *conv) for conv in convs)


def add_batch_norm_relu_conv2d(
    a: Tensor, b: Tensor, *channels: Tensor | None, convs: Sequence[Any], **options: Any
) -> tuple[Tensor, ...]:
    """``a + b``, and ``conv2d(batch_norm_relu(a + b, …), …)`` for each of `convs`."""
    total = _laid_out(a + b, a)
    return total, *batch_norm_relu_conv2d(total, *channels, convs=convs, **options)


def batch_norm_statistics(x: Tensor, addend: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """``x + addend``, and mean and biased variance over N, H, W, 0 of none: a pass of the norm.

    This and the three that follow are what the operators of their names compute, which
    ran_kernels/batch_norm_parts.py describes.
    """
    total = x if addend is None else _laid_out(x + addend, x)
    if total.numel() == 0:
        variance = mean = _wide(total).new_zeros(x.shape[1])
    else:
        variance, mean = torch.var_mean(_wide(total), (0, 2, 3), correction=0)
    return x.new_empty(0) if addend is None else total, mean, variance


def batch_norm_apply(
    x: Tensor,
    shortcut: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    relu: bool,
) -> Tensor:
    """``relu((x - mean) / sqrt(variance + eps) * weight + bias + shortcut)``."""
    out = _wide(x) - _map(mean)
    out = out * _map(torch.rsqrt(variance + eps) * (1 if weight is None else weight))
    if bias is not None:
        out = out + _map(bias)
    if shortcut is not None:
        out = out + shortcut
    return _laid_out((torch.relu(out) if relu else out).to(x.dtype), x)


def batch_norm_reduce(
    grad: Tensor,
    x: Tensor,
    out: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``g``, ``sum(g)`` and ``sum(g * (x - mean) / sqrt(variance + eps))`` over N, H, W."""
    g = grad
    if relu:
        result = out
        if result is None:
            result = batch_norm_apply(x, None, mean, variance, weight, bias, eps, relu)
        g = torch.where(result <= 0, 0, grad)
    xhat = (_wide(x) - _map(mean)) * _map(torch.rsqrt(variance + eps))
    masked = x.new_empty(0) if out is None else _laid_out(g, x)
    return masked, _wide(g).sum((0, 2, 3)), (_wide(g) * xhat).sum((0, 2, 3))


def batch_norm_grad(
    grad: Tensor,
    x: Tensor,
    addend: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    sum_grad: Tensor | None,
    sum_grad_xhat: Tensor | None,
    count: int,
    eps: float,
    relu: bool,
) -> Tensor:
    """The gradient of x, plus `addend`: of ``g`` as in `batch_norm_reduce`, and its two sums."""
    g = _wide(grad)
    if relu:
        result = batch_norm_apply(x, None, mean, variance, weight, bias, eps, relu)
        g = torch.where(result <= 0, 0, g)
    invstd = torch.rsqrt(variance + eps)
    if sum_grad is not None and sum_grad_xhat is not None:
        xhat = (_wide(x) - _map(mean)) * _map(invstd)
        g = g - (_map(sum_grad) + xhat * _map(sum_grad_xhat)) / count
    g = g * _map(invstd if weight is None else invstd * weight)
    return _laid_out((g if addend is None else g + addend).to(x.dtype), x)


def norm_relu_conv(
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    conv: Tensor,
    addend: Tensor | None,
    trunk: Tensor | None,
    stride: int,
    residual: bool,
    eps: float,
    measure: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``conv2d(relu(norm(x)), conv[:, :, None, None], stride)`` plus `addend` or as the gate of
    `trunk`, and its statistics.

    This and the four that follow are what the operators of their names compute, which
    ran_kernels/norm_relu_conv_parts.py describes.
    """
    a = _activation(x, mean, variance, weight, bias, eps).to(conv.dtype)
    y = F.conv2d(a, conv[:, :, None, None], None, stride)
    if addend is not None:
        y = y + addend
    if trunk is not None:
        y = attention_gate(y, trunk, residual=residual)
    y = y.contiguous(memory_format=torch.channels_last)
    found = batch_norm_statistics(y, None)[1:] if measure else (_wide(y).new_empty(0),) * 2
    return y, *found


def norm_relu_conv_gate_grad(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    conv: Tensor,
    trunk: Tensor,
    stride: int,
    residual: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The gradients of a gate's logits and of its trunk."""
    a = _activation(x, mean, variance, weight, bias, eps).to(conv.dtype)
    mask = F.conv2d(a, conv[:, :, None, None], None, stride).sigmoid()
    grad_logits = grad * trunk * (mask * (1 - mask))
    grad_trunk = grad * (1 + mask) if residual else grad * mask
    last = {"memory_format": torch.channels_last}
    return grad_logits.contiguous(**last), grad_trunk.contiguous(**last)


def norm_relu_conv_reduce(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    conv: Tensor,
    stride: int,
    eps: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``g``, ``sum(g)`` and ``sum(g * xhat)``, of the gradient that the ReLU lets through."""
    g = _conv_grad(grad, conv, x.shape[2:], stride).to(x.dtype)
    channels = (mean, variance, weight, bias)
    _, sum_grad, sum_grad_xhat = batch_norm_reduce(g, x, None, *channels, eps, True)
    if not keep:
        return x.new_empty(0), sum_grad, sum_grad_xhat
    g = torch.where(_activation(x, *channels, eps) <= 0, 0, g)
    return g.contiguous(memory_format=torch.channels_last), sum_grad, sum_grad_xhat


def norm_relu_conv_grad(
    grad: Tensor,
    x: Tensor | None,
    addend: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    sum_grad: Tensor | None,
    sum_grad_xhat: Tensor | None,
    count: int,
    conv: Tensor,
    size: Sequence[int],
    stride: int,
    eps: float,
) -> Tensor:
    """The gradient of x, plus `addend`."""
    out = _conv_grad(grad, conv, size, stride)
    if x is not None and mean is not None and variance is not None:
        norm = (mean, variance, weight, bias, sum_grad, sum_grad_xhat)
        out = batch_norm_grad(out.to(x.dtype), x, addend, *norm, count, eps, True)
    elif addend is not None:
        out = out + addend
    return out.contiguous(memory_format=torch.channels_last)


def norm_relu_conv_weight(
    grad: Tensor,
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    stride: int,
    eps: float,
) -> Tensor:
    """The gradient of the convolution's weight, (O, K)."""
    a = _activation(x, mean, variance, weight, bias, eps).to(grad.dtype)
    return torch.einsum("nohw,nkhw->ok", grad, a[:, :, ::stride, ::stride])


def _activation(
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    if mean is None or variance is None:
        return x
    return batch_norm_apply(x, None, mean, variance, weight, bias, eps, True)


def _conv_grad(grad: Tensor, conv: Tensor, size: Sequence[int], stride: int) -> Tensor:
    """convᵀ grad."""
    out = grad.new_zeros((grad.shape[0], conv.shape[1], *size))
    out[:, :, ::stride, ::stride] = torch.einsum("nohw,ok->nkhw", grad, conv)
    return out


def _map(channels: Tensor) -> Tensor:
    """(C,) as it multiplies (N, C, H, W)."""
    return channels[:, None, None]


def _wide(t: Tensor) -> Tensor:
    """`t` in the dtype that it is computed in."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _laid_out(result: Tensor, like: Tensor) -> Tensor:
    """`result` in the layout that results take from `like`, where the expression gave another."""
    return result.contiguous(memory_format=memory_format_of(like))
