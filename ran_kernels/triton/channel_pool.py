"""Triton's `ran_kernels.channel_pool`: every channel is a row, its positions the columns."""

import torch
from torch import Tensor

from ..layouts import dense_layout
from .pooling import pool
from .tiling import over_positions


def channel_pool(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Implements ``ran::channel_pool.triton``: mean, maximum and the maximum's position."""
    shape = x.shape[:2]
    mean, maximum = x.new_empty(shape), x.new_empty(shape)
    index = x.new_empty(shape, dtype=torch.int32)
    if x.numel():
        x = dense_layout(x)
        tiling = over_positions(x, merge=True)
        rows = (tiling.samples, tiling.rows)
        pool(x, None, tiling, mean.view(rows), maximum.view(rows), index.view(rows))
    return mean, maximum, index
