"""Fused attention and normalisation operators for convolutional networks.

Every operator is differentiable, but `add_affine_relu`, `affine_relu` and `conv_gate`, which are
for inference. Each has three implementations: the compiled extension (C++ and CUDA), which lacks
`conv_gate` and `norm_relu_conv`, Triton, and a plain PyTorch reference that defines what is
correct. See `ran_kernels.backend` for choosing one and ``python -m ran_kernels`` for what this
machine has.
"""

import torch.fx

from . import nn
from .add_affine_relu import add_affine_relu, affine_relu
from .attention_gate import attention_gate, attention_mask
from .backends import BackendError, backend, can_run
from .batch_norm import add_batch_norm_relu, batch_norm, batch_norm_add_relu, batch_norm_relu
from .batch_norm_conv import Convolution, add_batch_norm_relu_conv2d, batch_norm_relu_conv2d
from .cbam_gate import cbam_gate
from .channel_pool import channel_pool
from .conv_gate import conv_gate
from .extension import library_path
from .fuse import FuseReport, fuse, unfuse
from .norm_relu_conv import Measured, conv_statistics, norm_relu_conv
from .spatial_pool import spatial_pool
from .tuning import tune
from .upsample import upsample, upsample_add

__all__ = [
    "BackendError",
    "Convolution",
    "FuseReport",
    "Measured",
    "add_affine_relu",
    "add_batch_norm_relu",
    "add_batch_norm_relu_conv2d",
    "affine_relu",
    "attention_gate",
    "attention_mask",
    "backend",
    "batch_norm",
    "batch_norm_add_relu",
    "batch_norm_relu",
    "batch_norm_relu_conv2d",
    "can_run",
    "cbam_gate",
    "channel_pool",
    "conv_gate",
    "conv_statistics",
    "fuse",
    "library_path",
    "nn",
    "norm_relu_conv",
    "spatial_pool",
    "tune",
    "unfuse",
    "upsample",
    "upsample_add",
]

# torch.fx traces networks with stand-ins for tensors, which the operators' checks would refuse.
for _operator in (
    *("add_affine_relu", "affine_relu", "attention_gate", "attention_mask", "cbam_gate"),
    *("add_batch_norm_relu", "batch_norm", "batch_norm_add_relu", "batch_norm_relu"),
    *("add_batch_norm_relu_conv2d", "batch_norm_relu_conv2d"),
    *("conv_statistics", "norm_relu_conv"),
    *("channel_pool", "conv_gate", "spatial_pool", "upsample", "upsample_add"),
):
    torch.fx.wrap(_operator)
