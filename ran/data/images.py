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

from ..checks import require, require_choice, require_count, require_number
from ..cores import usable_cores
from ..errors import UserError
from ..files import require_regular

#: File name endings that count as images in a folder of classes.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".jp2", ".avif"),
)
#: Side at and below which an image is taken to be its subject, with no border to crop away.
SMALL_IMAGE = 64
#: Side in pixels of what a network may see, and its channels.
MOST_IMAGE_SIZE, MOST_CHANNELS = 4096, 1024
#: An image is enlarged to its crop divided by this, before it is cropped.
LEAST_CROP = 0.25
#: Of a mean and of a deviation, whose least is one divided by it: values are in [0, 1].
MOST_SCALE = 1e4


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop and normalisation, the same in training, evaluation and prediction.

    Attributes:
        image_size: side in pixels of the square that the network sees.
        crop_fraction: share of the resized image's shorter side that the centre crop keeps.
        mean, std: of each channel, for values scaled to [0, 1]; their length is the number of
            channels.

    Raises ValueError where an attribute is out of its range; it is named.
    """

    image_size: int
    crop_fraction: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        require_count("image_size", 1, self.image_size, most=MOST_IMAGE_SIZE)
        require_number("crop_fraction", LEAST_CROP, 1, self.crop_fraction)
        for name, least in (("mean", -MOST_SCALE), ("std", 1 / MOST_SCALE)):
            values = getattr(self, name)
            expected = f"a number for each of 1 to {MOST_CHANNELS} channels"
            several = isinstance(values, tuple) and 1 <= len(values) <= MOST_CHANNELS
            require(several, name, expected, values)
            for value in values:
                require_number(name, least, MOST_SCALE, value)
        equal = len(self.std) == len(self.mean)
        require(equal, "std", f"{len(self.mean)} numbers as of mean", self.std)

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
        """Raises ValueError that names the field that is missing, of another type or too large."""
        require(isinstance(content, dict), "preprocessing", "a table", content)
        for name in ("image_size", "crop_fraction", "mean", "std"):
            require(
                name in content, "preprocessing", f"a field {name!r}", sorted(map(str, content))
            )
        require_choice("interpolation", ("bilinear",), content.get("interpolation", "bilinear"))
        mean, std = (
            tuple(content[name]) if isinstance(content[name], list) else content[name]
            for name in ("mean", "std")
        )
        return cls(content["image_size"], content["crop_fraction"], mean, std)


def open_image(path: str | Path, channels: int) -> Image.Image:
    """The decoded image, upright, as 8-bit grayscale (``channels`` 1) or RGB (3).

    Raises:
        UserError: names the file, if it is missing, is no image or is damaged.
    """
    require_regular(path, "an image")
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
        require_regular(path, "an image")
        with Image.open(path) as image:
            grayscale = image.mode in ("1", "L") or image.mode.startswith("I")
            # A JPEG decoded at an eighth of its size is read to the end at a third of the cost.
            image.draft(image.mode, (1, 1))
            image.load()
    except UserError as error:
        if skip:
            return error
        raise
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
