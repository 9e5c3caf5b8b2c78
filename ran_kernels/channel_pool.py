"""The pooling of CBAM's channel attention: mean and maximum of every channel's map.

Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018 (arXiv 1807.06521).
"""

from typing import Any

import torch
from torch import Tensor

from . import backends, reference
from .cbam_backward import GRAD_X
from .checks import require_not_empty, require_tensor
from .library import define


def channel_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and maximum over H×W of every channel, in one pass over memory.

    Equal to ``(x.mean((2, 3)), x.flatten(2).max(dim=2).values)``. As there, the maximum's gradient
    goes to its first position in reading order, and a NaN is greater than any number.

    Args:
        x: (N, C, H, W), with at least one position.

    Returns:
        The mean and the maximum, each (N, C), contiguous and in x's dtype.

    Raises:
        TypeError: `x` is no floating-point tensor.
        ValueError: `x` has not four dimensions, or no position.
        BackendError: a backend was asked for that cannot run this.
    """
    require_tensor("x", x)
    require_not_empty("x", x, (2, 3), "at least one position")
    backend = backends.choose("channel_pool", x)
    if backend == "reference":
        return reference.channel_pool(x)
    mean, maximum, _ = CHANNEL_POOL[backend](x)
    return mean, maximum


def _fake(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape = x.shape[:2]
    return x.new_empty(shape), x.new_empty(shape), x.new_empty(shape, dtype=torch.int32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0], output[2])  # x for its shape and layout alone


def _backward(
    backend: str, ctx: Any, grad_mean: Tensor, grad_max: Tensor, grad_index: None
) -> Tensor:
    x, index = ctx.saved_tensors
    return GRAD_X[backend](x, None, None, None, None, None, grad_mean, grad_max, index)


#: (mean, max, index): index is the position of each maximum in H×W, (N, C) in int32.
CHANNEL_POOL = define(
    "channel_pool",
    "(Tensor x) -> (Tensor mean, Tensor max, Tensor index)",
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
