"""The end of the soft mask branch in one kernel: its last 1×1 convolution and the gate.

Wang et al., "Residual Attention Network for Image Classification", CVPR 2017 (arXiv 1704.06904).
For inference; the operator has no derivative.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backends
from .attention_gate import attention_gate
from .checks import (
    autocast_dtype,
    promote,
    require_device,
    require_not_empty,
    require_shape,
    require_tensor,
)
from .layouts import cast, dense_layout
from .library import define, refuse_gradients


def conv_gate(
    x: Tensor, weight: Tensor, bias: Tensor | None, trunk: Tensor, *, residual: bool = True
) -> Tensor:
    """``(1 + M) * trunk`` with ``M = sigmoid(F.conv2d(x, weight[:, :, None, None], bias))``.

    Triton's kernel writes no logits: it reads x and trunk, and writes the result. Its products are
    summed in float32 (float64 in float64); those of float32 are made in TF32 where PyTorch's matrix
    products are (`torch.set_float32_matmul_precision`). Without Triton, PyTorch convolves and
    `attention_gate` follows, on the backend that runs that; on a CPU the convolution's float32 and
    float64 have the same bits every run, but may have others for another number of threads.

    Args:
        x: the mask branch before its last convolution, (N, K, H, W).
        weight: (C, K).
        bias: (C,), or None.
        trunk: the trunk branch's output, (N, C, H, W).
        residual: attention residual learning, equation 3; without it, ``M * trunk``, equation 1.

    Returns:
        (N, C, H, W), in the dtype that PyTorch's promotion gives for the convolution and trunk,
        with trunk's strides where trunk is contiguous or channels_last. Under autocast the
        convolution is made in its dtype.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: shapes or devices do not fit, or trunk has no channels or no positions.
        RuntimeError: Triton's kernel runs and an argument requires gradients.
        BackendError: a backend was asked for that cannot run this; "native" has no kernel for it.
    """
    require_tensor("x", x)
    require_tensor("weight", weight, dims=2)
    require_tensor("trunk", trunk)
    n, channels, height, width = trunk.shape
    require_not_empty("trunk", trunk, (1, 2, 3), "channels and positions")
    require_shape("weight", weight, (channels, x.shape[1]), "(C of trunk, K of x)")
    require_shape("x", x, (n, x.shape[1], height, width), "but for K as trunk")
    require_device("weight", weight, "trunk", trunk)
    require_device("x", x, "trunk", trunk)
    operands = [x, weight]
    if bias is not None:
        require_tensor("bias", bias, dims=1)
        require_shape("bias", bias, (channels,), "(C,) of trunk")
        require_device("bias", bias, "trunk", trunk)
        operands.append(bias)
    x, weight, *rest = promote(*(t.to(autocast_dtype(t)) for t in operands))
    bias = rest[0] if rest else None
    trunk = cast(trunk, torch.promote_types(x.dtype, trunk.dtype))
    if backends.choose("conv_gate", trunk) == "triton":
        refuse_gradients("conv_gate", "triton", x, weight, bias, trunk)
        return CONV_GATE["triton"](x, weight, bias, trunk, residual)
    logits = F.conv2d(x, weight[:, :, None, None], bias)
    return attention_gate(logits, dense_layout(trunk), residual=residual)


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, trunk: Tensor, residual: bool) -> Tensor:
    return torch.empty_like(dense_layout(trunk))


CONV_GATE = define(
    "conv_gate",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor trunk, bool residual) -> Tensor",
    fake=_fake,
    inference=True,
    native=False,
)
