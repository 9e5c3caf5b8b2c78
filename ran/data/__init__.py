"""Data sets, by the name that ``--data`` gives them."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks import require_image_size
from ..errors import UserError
from . import augment
from .dataset import Batch, ImageData
from .decoding import read_image
from .images import SMALL_IMAGE, Preprocessing

if TYPE_CHECKING:
    from .options import DataOptions

__all__ = ["AUGMENTATIONS", "Batch", "ImageData", "Preprocessing", "load_data", "read_image"]

#: By name: what it does to training batches, and whether images are cropped at random scale first.
AUGMENTATIONS = {
    "none": (augment.unchanged, False),
    "shift": (augment.shift, False),
    "shift-flip": (augment.shift_flip, False),
    "scale-flip": (augment.flip, True),
}
_NAMES = "digits, cifar10:PATH, cifar100:PATH, folder:PATH, imagenet:PATH or READER/NAME[:PATH]"
#: Sets that are always in memory at their final size.
_SMALL = ("digits", "cifar10", "cifar100")


def load_data(
    name: str,
    image_size: int,
    augmentation: str = "auto",
    options: "DataOptions | None" = None,
    *,
    crop_fraction: float | None = None,
    test_only: bool = False,
) -> ImageData:
    """The data set called ``name``.

    Args:
        name: one of

            - ``digits``: scikit-learn's;
            - ``cifar10:PATH``, ``cifar100:PATH``: the files that torchvision reads;
            - ``folder:PATH`` with ``train/CLASS/image`` and ``test/CLASS/image`` (or ``val/``) in
              it; all are decoded once at the start, and kept in memory where they fit;
            - ``imagenet:PATH``: the same, but too many to decode them all first; always RGB;
            - ``READER/NAME`` or ``READER/NAME:PATH``: timm's readers, where READER is ``hfds``,
              ``hfids``, ``wds`` or ``tfds``.
        image_size: side in pixels of the square that the network sees.
        augmentation: a name in ``AUGMENTATIONS``, or ``auto``: ``shift`` for digits, which have a
            left and a right; ``shift-flip`` for other small images; ``scale-flip`` for large ones.
        options: how to read it; the defaults if None.
        crop_fraction: share of an image's shorter side that is kept in the test, as a network was
            trained with; None for what is usual at this size.
        test_only: leave the training part of image files and of timm's readers unread; it need not
            be there. ``train`` then has no images or those of the test.

    Raises:
        UserError: no such data set or augmentation, or the set lacks something.
    """
    require_image_size(image_size)  # before the images are read
    kind, _, path = name.partition(":")
    reader = kind.partition("/")[0] if "/" in kind else ""
    if augmentation == "auto":
        if name == "digits":
            augmentation = "shift"
        else:
            small = image_size <= SMALL_IMAGE or kind in _SMALL
            augmentation = "shift-flip" if small else "scale-flip"
    if augmentation not in AUGMENTATIONS:
        expected = ", ".join(["auto", *AUGMENTATIONS])
        raise UserError(f"augmentation: expected one of {expected}, got {augmentation!r}")
    batch_augmentation, random_scale = AUGMENTATIONS[augmentation]
    if random_scale and kind in _SMALL:
        raise UserError(f"augmentation: {kind} takes none, shift or shift-flip, got scale-flip")

    # imported here: scikit-learn and timm take a second to load, and prediction needs neither
    from .options import DataOptions

    options = options or DataOptions()
    data: ImageData
    if name == "digits":
        from .digits import load_digits

        data = load_digits(image_size, crop_fraction or 1.0)
    elif kind in ("cifar10", "cifar100") and path:
        from .cifar import CIFAR10, CIFAR100, load_cifar

        set_class = CIFAR10 if kind == "cifar10" else CIFAR100
        data = load_cifar(
            set_class,
            Path(path),
            image_size,
            download=options.download,
            crop_fraction=crop_fraction or 1.0,
        )
    elif kind in ("folder", "imagenet") and path:
        from .folder import load_folder

        data = load_folder(
            Path(path),
            image_size,
            options,
            random_scale=random_scale,
            check=kind == "folder",
            crop_fraction=crop_fraction,
            test_only=test_only,
        )
    elif reader:
        from .readers import READERS, load_reader

        if reader not in READERS:
            raise UserError(f"data: expected a reader of {', '.join(READERS)}, got {name!r}")
        data = load_reader(
            name,
            image_size,
            options,
            random_scale=random_scale,
            crop_fraction=crop_fraction,
            test_only=test_only,
        )
    else:
        raise UserError(f"data: expected {_NAMES}, got {name!r}")
    mean = data.preprocessing.mean
    augment_batch = augment.followed_by_cutout(batch_augmentation, options.cutout, mean)
    return replace(data, name=name, augmentation=augment_batch)
