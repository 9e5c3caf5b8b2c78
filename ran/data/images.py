"""What is done to every image before a network sees it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from ..checks import require, require_choice, require_image_size, require_number
from ..text import plural

#: Side at and below which an image is taken to be its subject, with no border to crop away.
SMALL_IMAGE = 64
#: Longer side, in shorter ones, up to which an image is resized as a whole. Of a longer one the
#: ends, of which the centre crop leaves nothing, are cut off first: resized, they may be a million
#: times as many pixels as the image has.
MOST_ASPECT = 16
#: Channels of what a network may see.
MOST_CHANNELS = 1024
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
        require_image_size(self.image_size)
        require_number("crop_fraction", LEAST_CROP, 1, self.crop_fraction)
        for name, least in (("mean", -MOST_SCALE), ("std", 1 / MOST_SCALE)):
            values = getattr(self, name)
            expected = f"a number for each of 1 to {MOST_CHANNELS} channels"
            several = isinstance(values, tuple) and 1 <= len(values) <= MOST_CHANNELS
            require(several, name, expected, values)
            for value in values:
                require_number(name, least, MOST_SCALE, value)
        equal = len(self.std) == len(self.mean)
        require(equal, "std", f"{plural(len(self.mean), 'number')} as of mean", self.std)

    @property
    def channels(self) -> int:
        return len(self.mean)

    def resize(self, images: Tensor) -> Tensor:
        """(..., C, H, W) uint8 to (..., C, image_size, image_size) uint8: resize, centre crop."""
        size = self.image_size
        shorter = round(size / self.crop_fraction)
        scale = shorter / min(images.shape[-2:])
        images = _without_ends(images, scale)
        height, width = images.shape[-2:]
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


def _without_ends(images: Tensor, scale: float) -> Tensor:
    """The middle of images (..., H, W) that are longer than ``MOST_ASPECT`` times their width.

    The middle stays where it is, in what they are and in what resizing by ``scale`` makes of them:
    both are as odd or even as before.
    """
    sizes = images.shape[-2:]
    most = MOST_ASPECT * min(sizes)
    for axis, length in zip((-2, -1), sizes, strict=True):
        if length > most:
            kept = most + (length - most) % 2
            while kept < length and (round(kept * scale) - round(length * scale)) % 2:
                kept += 2
            images = images.narrow(axis, (length - kept) // 2, kept)
    return images
