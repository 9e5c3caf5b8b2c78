"""Reading image files, and what is done to every image before a network sees it."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from ..errors import UserError
from ..processes import usable_cores

#: File name endings that count as images in a folder of classes.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".jp2", ".avif"),
)
#: Side at and below which an image is taken to be its subject, with no border to crop away.
SMALL_IMAGE = 64


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop and normalisation, the same in training, evaluation and prediction.

    Attributes:
        image_size: side in pixels of the square that the network sees.
        crop_fraction: share of the resized image's shorter side that the centre crop keeps.
        mean, std: of each channel, for values scaled to [0, 1]; their length is the number of
            channels.
    """

    image_size: int
    crop_fraction: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        return len(self.mean)

    def resize(self, images: Tensor) -> Tensor:
        """(..., C, H, W) uint8 to (..., C, image_size, image_size) uint8: resize, centre crop."""
        size = self.image_size
        shorter = round(size / self.crop_fraction)
        height, width = images.shape[-2:]
        scale = shorter / min(height, width)
        resized = tvf.resize(
            images,
            [max(size, round(height * scale)), max(size, round(width * scale))],
            antialias=True,
        )
        return tvf.center_crop(resized, [size, size])

    def normalize(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 to float32 of mean 0 and deviation 1, channels last."""
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, device=images.device).view(shape)
        std = torch.tensor(self.std, device=images.device).view(shape)
        scaled = images.to(torch.float32, memory_format=torch.channels_last) / 255
        return (scaled - mean) / std

    def to_json(self) -> dict[str, Any]:
        return {
            "image_size": self.image_size,
            "crop_fraction": self.crop_fraction,
            "interpolation": "bilinear",
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Preprocessing":
        return cls(
            image_size=int(content["image_size"]),
            crop_fraction=float(content["crop_fraction"]),
            mean=tuple(float(value) for value in content["mean"]),
            std=tuple(float(value) for value in content["std"]),
        )


def open_image(path: str | Path, channels: int) -> Image.Image:
    """The decoded image, upright, as 8-bit grayscale (``channels`` 1) or RGB (3).

    Raises:
        UserError: names the file, if it is missing, is no image or is damaged.
    """
    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except Exception as error:  # every decoder has exceptions of its own
        raise _unreadable(path, error) from None
    if upright.mode.startswith("I"):
        # Pillow clips 16-bit values at 255 when it converts; the high byte is what is meant.
        upright = upright.convert("I").point(lambda value: value / 256).convert("L")
    return upright.convert("L" if channels == 1 else "RGB")


def read_image(path: str | Path, channels: int) -> Tensor:
    """The image as (channels, H, W) uint8; raises as ``open_image`` does."""
    return tvf.pil_to_tensor(open_image(path, channels))


def check_images(
    paths: Iterable[str | Path], *, skip: bool = False
) -> tuple[bool, list[UserError | None]]:
    """Decodes every file once, so that a damaged one is found now and not in the tenth epoch.

    Returns:
        Whether all that can be decoded are grayscale; and, for each that cannot, what is wrong
        or None otherwise, in the order of ``paths``.

    Raises:
        UserError: names the first file that cannot be decoded, unless ``skip``.
    """
    with ThreadPoolExecutor(usable_cores()) as pool:
        found = list(pool.map(partial(_check_image, skip=skip), paths))
    grayscale = all(entry for entry in found if isinstance(entry, bool))
    return grayscale, [None if isinstance(entry, bool) else entry for entry in found]


def _check_image(path: str | Path, *, skip: bool) -> bool | UserError:
    try:
        with Image.open(path) as image:
            grayscale = image.mode in ("1", "L") or image.mode.startswith("I")
            # A JPEG decoded at an eighth of its size is read to the end at a third of the cost.
            image.draft(image.mode, (1, 1))
            image.load()
    except Exception as error:
        if skip:
            return _unreadable(path, error)
        raise _unreadable(path, error) from None
    return grayscale


def _unreadable(path: str | Path, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: expected an image, found nothing there")
    if isinstance(error, IsADirectoryError):
        return UserError(f"{path}: expected an image, found a folder")
    reason = " ".join(str(error).replace(repr(str(path)), "it").split())
    return UserError(f"{path}: expected a readable image: {reason or type(error).__name__}")
