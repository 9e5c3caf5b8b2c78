"""Inputs that the tests of CBAM's operators share."""

import torch
from torch import Tensor

from .harness import LAYOUTS, Place

# Odd and non-square, a single channel, a 1×1 map, fewer positions than a vector has lanes, fewer
# channels, and one that is cut into several tiles, blocks and threads.
SHAPES = [(2, 3, 5, 7), (2, 1, 9, 4), (3, 17, 1, 1), (2, 9, 2, 3), (2, 70, 23, 29)]
NATIVE_LAYOUTS = ("contiguous", "channels_last")


def features(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    layout: str = "contiguous",
    seed: int = 0,
) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + seed)
    return LAYOUTS[layout](torch.randn(shape, generator=generator).to(dtype).to(device))


def channel_logits(x: Tensor) -> Tensor:
    """(N, C) for x."""
    return features((*x.shape[:2], 1, 1), seed=1).flatten(1).to(x)


def spatial_logits(x: Tensor) -> Tensor:
    """(N, 1, H, W) for x."""
    return features((x.shape[0], 1, *x.shape[2:]), seed=2).to(x)


def fits(place: Place, shape: tuple[int, ...]) -> bool:
    """Whether the place is fast enough for the shape; Triton's interpreter is for small ones."""
    return str(place) != "triton-cpu" or torch.Size(shape).numel() < 10_000
