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


def followed_by_cutout(
    augmentation: Augmentation, size: int, mean: tuple[float, ...]
) -> Augmentation:
    """``augmentation``, then ``cutout`` of ``size`` pixels to ``mean``, if ``size`` is not 0."""
    return (lambda images: cutout(augmentation(images), size, mean)) if size else augmentation


def cutout(images: Tensor, size: int, mean: tuple[float, ...]) -> Tensor:
    """Blanks a square of ``size`` pixels, or what of it is inside, at random in every image.

    As DeVries & Taylor 2017 (arXiv 1708.04552): its centre is uniform over the image, and the
    blank is ``mean`` (of each channel, 0 to 1), which is 0 once it is normalised.
    """
    count, channels, height, width = images.shape
    rows = _around_a_random_place(height, size, count, images.device)[:, None, :, None]
    columns = _around_a_random_place(width, size, count, images.device)[:, None, None, :]
    blank = torch.tensor(mean, device=images.device).mul(255).round().to(images.dtype)
    return torch.where(rows & columns, blank.view(1, channels, 1, 1), images)


def _around_a_random_place(length: int, size: int, count: int, device: torch.device) -> Tensor:
    """(count, length) bool: ``size`` places around a random one in each row."""
    start = torch.randint(length, (count, 1), device=device) - size // 2
    offset = torch.arange(length, device=device) - start
    return (offset >= 0) & (offset < size)
