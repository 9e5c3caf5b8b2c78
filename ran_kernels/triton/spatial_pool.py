"""Triton's `ran_kernels.spatial_pool`: every position is a row, its channels the columns."""

import torch
from torch import Tensor

from ..layouts import dense_layout
from .common import contiguous
from .pooling import pool
from .tiling import over_channels


def spatial_pool(x: Tensor, channel_logits: Tensor | None) -> tuple[Tensor, Tensor]:
    """Implements ``ran::spatial_pool.triton``: maximum and mean, and the maximum's channel."""
    n, _, height, width = x.shape
    maps = x.new_empty((n, 2, height, width))
    index = x.new_empty((n, height, width), dtype=torch.int32)
    if x.numel():
        x = dense_layout(x)
        maximum, mean = maps.flatten(2).unbind(1)
        pool(x, contiguous(channel_logits), over_channels(x), mean, maximum, index.flatten(1))
    return maps, index
