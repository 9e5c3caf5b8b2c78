"""Images as a program may hold them: PIL's, arrays and tensors."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from ..errors import UserError
from ..text import plural
from .decoding import decoded_image
from .images import MOST_CHANNELS

#: A path, a PIL image, (H, W) or (H, W, C) of an array, (C, H, W) of a tensor, or a batch of these.
Given = str | Path | Image.Image | np.ndarray | Tensor


def each_given(images: Given | Sequence[Given]) -> Iterator[Given]:
    """The single images among ``images``: a batch gives each of its own.

    Raises UserError where it is neither an image nor a sequence of such.
    """
    if isinstance(images, Tensor | np.ndarray) and images.ndim == 4:
        yield from images
    elif isinstance(images, Given):
        yield images
    elif isinstance(images, Sequence):
        for each in images:
            yield from each_given(each)
    else:
        kind = type(images).__name__
        raise UserError(f"images: expected paths, PIL images, arrays or tensors, got a {kind}")


def as_image(given: Any, channels: int, name: str) -> Tensor:
    """One image in memory as a network of so many input channels sees it: (C, H, W) uint8.

    Values are integers of 8 bits, or floating-point numbers from 0 to 1. Gray becomes RGB and the
    reverse, and a fourth channel behind RGB, which is transparency, is left aside.

    Raises UserError that calls the image ``name``.
    """
    if isinstance(given, Image.Image):
        return tvf.pil_to_tensor(decoded_image(given, channels, name))
    pixels = _from_array(given, name) if isinstance(given, np.ndarray) else given.detach().cpu()
    if pixels.ndim == 2:
        pixels = pixels[None]
    found = pixels.shape[0] if pixels.ndim == 3 else 0
    if pixels.ndim != 3 or not 1 <= found <= MOST_CHANNELS or not pixels.numel():
        axes = "(H, W, C) or (H, W)" if isinstance(given, np.ndarray) else "(C, H, W) or (H, W)"
        raise UserError(f"{name}: expected shape {axes}, got {tuple(given.shape)}")
    return _of_channels(_of_8_bits(pixels, name), channels, name)


def _from_array(array: np.ndarray, name: str) -> Tensor:
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise UserError(f"{name}: expected uint8, or floats from 0 to 1, got {array.dtype}")
    # Arrays may be of the other byte order and of negative strides, which tensors cannot be.
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    if plain.dtype.itemsize > 8:
        plain = plain.astype(np.float64)
    pixels = torch.tensor(plain)
    return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels


def _of_8_bits(pixels: Tensor, name: str) -> Tensor:
    if pixels.dtype == torch.uint8:
        return pixels
    if not pixels.is_floating_point():
        kind = str(pixels.dtype).removeprefix("torch.")
        raise UserError(f"{name}: expected uint8, or floats from 0 to 1, got {kind}")
    low, high = (float(end) for end in pixels.aminmax())
    if not (low >= 0 and high <= 1):  # NaN too
        raise UserError(
            f"{name}: expected floats from 0 to 1, not yet normalised, got {low:g} to {high:g}"
        )
    return (pixels.double() * 255).round().to(torch.uint8)


def _of_channels(pixels: Tensor, channels: int, name: str) -> Tensor:
    found = pixels.shape[0]
    if found == channels:
        return pixels
    if found == 4 and channels in (1, 3):
        pixels, found = pixels[:3], 3
    if (found, channels) == (1, 3):
        return pixels.expand(3, -1, -1)
    if (found, channels) == (3, 1):
        return tvf.rgb_to_grayscale(pixels)
    if found != channels:
        expected = plural(channels, "channel")
        raise UserError(f"{name}: expected {expected}, as the network takes, got {found}")
    return pixels
