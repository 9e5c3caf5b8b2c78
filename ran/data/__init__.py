"""Data sets, by the name that ``--data`` gives them."""

from pathlib import Path

from ..errors import UserError
from . import augment
from .dataset import Batch, ImageData
from .images import SMALL_IMAGE, Preprocessing, read_image

__all__ = ["AUGMENTATIONS", "Batch", "ImageData", "Preprocessing", "load_data", "read_image"]

#: By name: what it does to training batches, and whether images are cropped at random scale first.
AUGMENTATIONS = {
    "none": (augment.unchanged, False),
    "shift": (augment.shift, False),
    "shift-flip": (augment.shift_flip, False),
    "scale-flip": (augment.flip, True),
}


def load_data(name: str, image_size: int, augmentation: str = "auto") -> ImageData:
    """The data set called ``name``.

    Args:
        name: ``digits``, or ``folder:PATH`` with ``train/`` and ``test/`` (or ``val/``) in it.
        image_size: side in pixels of the square that the network sees.
        augmentation: a name in ``AUGMENTATIONS``, or ``auto``: ``shift`` for digits, which have a
            left and a right; ``shift-flip`` for other small images; ``scale-flip`` for large ones.

    Raises:
        UserError: no such data set or augmentation, or ``folder:PATH`` lacks something.
    """
    kind, _, path = name.partition(":")
    if name != "digits" and (kind != "folder" or not path):
        raise UserError(f"data: expected digits or folder:PATH, got {name!r}")
    if augmentation == "auto":
        if name == "digits":
            augmentation = "shift"
        else:
            augmentation = "shift-flip" if image_size <= SMALL_IMAGE else "scale-flip"
    if augmentation not in AUGMENTATIONS:
        expected = ", ".join(["auto", *AUGMENTATIONS])
        raise UserError(f"augmentation: expected one of {expected}, got {augmentation!r}")
    batch_augmentation, random_scale = AUGMENTATIONS[augmentation]

    # imported here: scikit-learn and timm take a second to load, and prediction needs neither
    if name == "digits":
        if random_scale:
            raise UserError("augmentation: digits takes none, shift or shift-flip, got scale-flip")
        from .digits import load_digits

        return load_digits(image_size, batch_augmentation)
    from .folder import load_folder

    return load_folder(Path(path), image_size, batch_augmentation, random_scale=random_scale)
