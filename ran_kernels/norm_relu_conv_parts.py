"""A 1×1 convolution's passes over the big tensors, with the normalisation before it inside them.

`ran_kernels.norm_relu_conv` makes one autograd node of them. With xhat = (x - mean) / √(variance +
eps), a = relu(xhat weight + bias) as rounded to its dtype, or without `mean` a = x, and the matrix
conv (O, K) of a convolution of stride s:

1. ``norm_relu_conv``: y = conv a + addend, or with `trunk` the gate of attention, y = (1 + M) trunk
   with M = sigmoid(conv a), and without `residual` M trunk; and with `measure` mean and biased
   variance of each channel of y over N, H, W, as y is rounded to its dtype; without it those are
   empty.
2. ``norm_relu_conv_gate_grad``: of grad, such a y's gradient, those of conv a, which is computed
   again, and of trunk: grad trunk M (1 - M) and grad (1 + M), or grad M.
3. ``norm_relu_conv_reduce``: of grad, y's gradient, g = relu'(convᵀ grad), which is the
   first result with `keep` and an empty tensor without; sum_grad = Σ g and sum_grad_xhat =
   Σ g xhat, the gradients of bias and weight.
4. ``norm_relu_conv_grad``: weight / √(variance + eps) (g - (sum_grad + xhat sum_grad_xhat) / count)
   + addend, of the same g, computed again; without sums, for statistics that do not depend on x,
   the second term is left out, and without `mean`, convᵀ grad + addend. `size` is (H, W)
   of the result.
5. ``norm_relu_conv_weight``: grad aᵀ, the gradient of conv.

The results are channels_last and the arguments are read as such; other strides are copied first.
Every term that is None is left out; weight is 1 then. Sums are float32, or float64 where the
operands are, and are made in an order that the shapes alone decide. x, and with it the activation's
gradients, may have another dtype than conv, grad and y.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .batch_norm_parts import per_channel
from .library import OPERATORS, define

# The functions that people call are made of them all.
OPERATORS.append("norm_relu_conv")


def out_size(size: Sequence[int], stride: int) -> tuple[int, int]:
    """(H, W) of a 1×1 convolution's result."""
    height, width = size
    return (height - 1) // stride + 1, (width - 1) // stride + 1


def new_image(like: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Uninitialised, channels_last, of this size and dtype on `like`'s device."""
    return torch.empty(size, dtype=dtype, device=like.device, memory_format=torch.channels_last)


def _fake(
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
    out = conv.shape[0]
    y = new_image(x, (x.shape[0], out, *out_size(x.shape[2:], stride)), conv.dtype)
    return y, per_channel(y, out if measure else 0), per_channel(y, out if measure else 0)


def _fake_gate_grad(
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
    return new_image(grad, trunk.shape, conv.dtype), new_image(grad, trunk.shape, conv.dtype)


def _fake_reduce(
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
    masked = new_image(x, x.shape, x.dtype) if keep else x.new_empty(0)
    return masked, per_channel(x, x.shape[1]), per_channel(x, x.shape[1])


def _fake_grad(
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
    dtype = conv.dtype if x is None else x.dtype
    return new_image(grad, (grad.shape[0], conv.shape[1], *size), dtype)


def _fake_weight(
    grad: Tensor,
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    stride: int,
    eps: float,
) -> Tensor:
    return grad.new_empty((grad.shape[1], x.shape[1]))


_NORM = "Tensor? mean, Tensor? variance, Tensor? weight, Tensor? bias"

NORM_RELU_CONV = define(
    "norm_relu_conv",
    f"(Tensor x, {_NORM}, Tensor conv, Tensor? addend, Tensor? trunk, int stride, bool residual,"
    " float eps, bool measure) -> (Tensor y, Tensor mean, Tensor variance)",
    fake=_fake,
    native=False,
)
NORM_RELU_CONV_GATE_GRAD = define(
    "norm_relu_conv_gate_grad",
    "(Tensor grad, Tensor x, Tensor mean, Tensor variance, Tensor? weight, Tensor? bias,"
    " Tensor conv, Tensor trunk, int stride, bool residual, float eps)"
    " -> (Tensor grad_logits, Tensor grad_trunk)",
    fake=_fake_gate_grad,
    file="norm_relu_conv",
    native=False,
)
NORM_RELU_CONV_REDUCE = define(
    "norm_relu_conv_reduce",
    "(Tensor grad, Tensor x, Tensor mean, Tensor variance, Tensor? weight,"
    " Tensor? bias, Tensor conv, int stride, float eps, bool keep)"
    " -> (Tensor masked, Tensor sum_grad, Tensor sum_grad_xhat)",
    fake=_fake_reduce,
    file="norm_relu_conv",
    native=False,
)
NORM_RELU_CONV_GRAD = define(
    "norm_relu_conv_grad",
    f"(Tensor grad, Tensor? x, Tensor? addend, {_NORM}, Tensor? sum_grad,"
    " Tensor? sum_grad_xhat, SymInt count, Tensor conv, SymInt[] size, int stride, float eps)"
    " -> Tensor",
    fake=_fake_grad,
    file="norm_relu_conv",
    native=False,
)
NORM_RELU_CONV_WEIGHT = define(
    "norm_relu_conv_weight",
    f"(Tensor grad, Tensor x, {_NORM}, int stride, float eps) -> Tensor",
    fake=_fake_weight,
    file="norm_relu_conv",
    native=False,
)
