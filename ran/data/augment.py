"""Augmentation of whole batches, on the device that trains."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

#: Changes a batch (N, C, H, W) uint8 at random into one of the same shape and type.
Augmentation = Callable[[Tensor], Tensor]


def shift(images: Tensor, part: int = 16) -> Tensor:
    """Crops every image at random from itself with zeros around it, 1/``part`` of its size wide."""
    count, _, height, width = images.shape
    pad_h, pad_w = height // part, width // part
    padded = F.pad(images, (pad_w, pad_w, pad_h, pad_h))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    rows = torch.randint(2 * pad_h + 1, (count,), device=images.device)
    columns = torch.randint(2 * pad_w + 1, (count,), device=images.device)
    return windows[torch.arange(count, device=images.device), :, rows, columns]


def flip(images: Tensor) -> Tensor:
    """Mirrors every other image, left to right, at random."""
    mirrored = torch.rand(images.shape[0], 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(3), images)


def shift_flip(images: Tensor) -> Tensor:
    """The papers' augmentation for CIFAR: 32×32 from a padding of 4, mirrored or not."""
    return flip(shift(images, part=8))


def unchanged(images: Tensor) -> Tensor:
    """No augmentation."""
    return images
