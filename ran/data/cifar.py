"""CIFAR-10 and CIFAR-100, in the files that torchvision reads."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from ..errors import UserError
from .augment import unchanged
from .dataset import ImageData, InMemory
from .images import Preprocessing

#: Mean and deviation of each channel over the training images.
STATISTICS = {
    CIFAR10: ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    CIFAR100: ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def load_cifar(
    kind: type[CIFAR10],
    root: Path,
    image_size: int,
    *,
    download: bool,
    crop_fraction: float = 1.0,
) -> ImageData:
    """The 50,000 training and 10,000 test images in ``root``, in memory.

    Args:
        kind: torchvision's class of the set.
        root: holds its folder of batches, or is that folder.
        image_size: side of the square that the network sees.
        download: fetch the files where they are missing.
        crop_fraction: share of the shorter side that is kept.

    Raises:
        UserError: names a file that is missing or is not the published one. Its checksum is
            compared before anything is read: the files are pickles, which could run code.
    """
    if root.name == kind.base_folder:
        root = root.parent
    if download:
        _download(kind, root)
    _check(kind, root)
    try:
        parts = [kind(str(root), train=train) for train in (True, False)]
    except (OSError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(f"{root / kind.base_folder}: cannot be read: {error}") from None
    mean, std = STATISTICS[CIFAR100 if issubclass(kind, CIFAR100) else CIFAR10]
    preprocessing = Preprocessing(image_size, crop_fraction, mean=mean, std=std)
    train, test = (_in_memory(part, preprocessing) for part in parts)
    return ImageData(
        name=f"{kind.__name__.lower()}:{root}",
        class_names=tuple(parts[0].classes),
        preprocessing=preprocessing,
        train=train,
        test=test,
        augmentation=unchanged,
        workers=0,
    )


def _in_memory(part: Any, preprocessing: Preprocessing) -> InMemory:
    pixels = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
    return InMemory(preprocessing.resize(pixels), torch.tensor(part.targets))


def _check(kind: type[CIFAR10], root: Path) -> None:
    folder = root / kind.base_folder
    files = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
    for name, checksum in files:
        path = folder / name
        if not path.is_file():
            hint = "" if folder.is_dir() else "; --download fetches it where there is a network"
            raise UserError(f"{path}: expected a file of {kind.__name__}, found none{hint}")
        if not check_integrity(str(path), checksum):
            raise UserError(f"{path}: expected the published file, its checksum is another")


def _download(kind: type[CIFAR10], root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        kind(str(root), download=True)
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors
        raise UserError(f"{root}: cannot download {kind.__name__}: {error}") from None
