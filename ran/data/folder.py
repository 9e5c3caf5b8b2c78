"""Image files in folders: ``train/CLASS/image`` and ``test/CLASS/image`` (or ``val/``)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import functional as tvf

from ..cores import usable_cores
from ..errors import UserError
from .augment import Augmentation
from .dataset import Batch, ImageData
from .images import IMAGE_SUFFIXES, SMALL_IMAGE, Preprocessing, check_images, open_image

#: What the centre crop keeps of images larger than SMALL_IMAGE: 224 of 256, as is usual.
CROP_FRACTION = 0.875
#: More readers than this for one process help little, and each holds the libraries once more.
MOST_WORKERS = 8


@dataclass(frozen=True)
class Files:
    """Images read from their files when they are asked for."""

    folder: ImageFolder
    transform: Callable[[Image.Image], Tensor]

    def __len__(self) -> int:
        return len(self.folder)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        samples = [self.folder[index] for index in indices]
        return (
            torch.stack([self.transform(image) for image, _ in samples]),
            torch.tensor([label for _, label in samples]),
        )


def load_folder(
    root: Path, image_size: int, augmentation: Augmentation, *, random_scale: bool
) -> ImageData:
    """The images under ``root``, which are all decoded once to find damaged ones.

    Grayscale where every image is, RGB otherwise.

    Args:
        root: holds ``train`` and ``test`` or, where that is missing, ``val``; each has one folder
            a class, the same in both.
        image_size: side of the square that the network sees.
        augmentation: of training batches.
        random_scale: train on crops of random scale, ratio and colour before ``augmentation``.

    Raises:
        UserError: names a missing folder, a class without images or in one part only, or an
            image that cannot be read.
    """
    train_root, test_root = _parts(root)
    parts = [_class_names(train_root), _class_names(test_root)]
    if parts[0] != parts[1]:
        odd = sorted(set(parts[0]) ^ set(parts[1]))[0]
        where = train_root if odd in parts[1] else test_root
        raise UserError(f"{where}: expected the same classes as beside it, has no {odd!r}")

    folders = [
        ImageFolder(str(part), is_valid_file=_is_image, allow_empty=True)
        for part in (train_root, test_root)
    ]
    for part, folder in zip((train_root, test_root), folders, strict=True):
        _refuse_empty_classes(part, folder)
    grayscale = check_images([path for folder in folders for path, _ in folder.samples])
    for folder in folders:
        folder.loader = partial(open_image, channels=1 if grayscale else 3)

    preprocessing = Preprocessing(
        image_size=image_size,
        crop_fraction=1.0 if image_size <= SMALL_IMAGE else CROP_FRACTION,
        mean=_gray(IMAGENET_DEFAULT_MEAN) if grayscale else IMAGENET_DEFAULT_MEAN,
        std=_gray(IMAGENET_DEFAULT_STD) if grayscale else IMAGENET_DEFAULT_STD,
    )
    to_size = partial(_to_size, preprocessing)
    return ImageData(
        name=f"folder:{root}",
        class_names=tuple(parts[0]),
        preprocessing=preprocessing,
        train=Files(folders[0], _random_scale(image_size) if random_scale else to_size),
        test=Files(folders[1], to_size),
        augmentation=augmentation,
        workers=min(MOST_WORKERS, usable_cores() - 1),
    )


def _parts(root: Path) -> tuple[Path, Path]:
    if not root.is_dir():
        raise UserError(f"{root}: expected a folder of images, found no folder there")
    test = root / "test" if (root / "test").is_dir() else root / "val"
    for part, expected in ((root / "train", "train/"), (test, "test/ or val/")):
        if not part.is_dir():
            raise UserError(f"{root}: expected {expected} with a folder for each class in it")
    return root / "train", test


def _class_names(part: Path) -> list[str]:
    names = sorted(entry.name for entry in part.iterdir() if entry.is_dir())
    if len(names) < 2:
        raise UserError(f"{part}: expected folders of 2 or more classes, has {len(names)}")
    return names


def _refuse_empty_classes(part: Path, folder: ImageFolder) -> None:
    found = set(folder.targets)
    for name, number in folder.class_to_idx.items():
        if number not in found:
            raise UserError(f"{part / name}: expected images of class {name!r}, has none")


def _is_image(path: str) -> bool:
    return path.lower().endswith(IMAGE_SUFFIXES) and not Path(path).name.startswith(".")


def _gray(rgb: tuple[float, ...]) -> tuple[float, ...]:
    return (round(sum(rgb) / len(rgb), 3),)


def _to_size(preprocessing: Preprocessing, image: Image.Image) -> Tensor:
    return preprocessing.resize(tvf.pil_to_tensor(image))


def _random_scale(image_size: int) -> Any:
    # timm's transforms for ImageNet, without the flip, which is done in batches
    return create_transform(
        image_size, is_training=True, hflip=0.0, interpolation="bilinear", normalize=False
    )
