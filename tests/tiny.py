"""A network and data small enough to train in seconds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ran.training.settings import TrainingSettings

#: One stage with one attention module.
TINY_OPTIONS: dict[str, Any] = {
    "modules": [1],
    "widths": [32],
    "strides": [1],
    "mask_depths": [1],
    "stem_width": 8,
    "tail_units": 0,
}
TINY: dict[str, Any] = {
    "model": "attention56_cifar_pool",
    "data": "digits",
    "image_size": 16,
    "batch_size": 32,
    "augmentation": "none",
    "threads": 1,
    "device": "cpu",
    "model_options": TINY_OPTIONS,
}


def tiny_settings(output: Path, **changes: Any) -> TrainingSettings:
    return TrainingSettings(**{**TINY, "output": output, **changes})


def random_image(size: tuple[int, int], seed: int, mode: str = "RGB") -> Image.Image:
    """Of (width, height) pixels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).convert(mode)


def make_folder(
    root: Path,
    *,
    parts: Sequence[str] = ("train", "test"),
    classes: Sequence[str] = ("cat", "dog"),
    mode: str = "RGB",
    suffix: str = "png",
    size: tuple[int, int] = (20, 18),
    count: int = 4,
) -> Path:
    """A folder of images for ``folder:PATH``; returns ``root``."""
    for part in parts:
        for number, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                image = random_image(size, 100 * number + index, mode)
                image.save(root / part / name / f"{index}.{suffix}")
    return root
