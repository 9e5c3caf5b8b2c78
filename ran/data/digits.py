"""scikit-learn's handwritten digits: 1,797 images of 8×8 pixels, shipped with it."""

import torch
from sklearn.datasets import load_digits as load_sklearn_digits
from sklearn.model_selection import train_test_split

from .augment import unchanged
from .dataset import ImageData, InMemory
from .images import Preprocessing

#: The pixel values of the data set are 0 (paper) to 16 (ink).
INK = 16
#: The split is part of the data set: no seed of a training changes it.
SPLIT_SEED = 0
TEST_FRACTION = 0.2


def load_digits(image_size: int, crop_fraction: float = 1.0) -> ImageData:
    """The digits as grayscale images of ``image_size``: 1,437 to train on, 360 to test.

    The split is random, the same every time, with every class in its share of both parts. The
    digits of one writer may be in both.
    """
    bunch = load_sklearn_digits()
    pixels = torch.from_numpy(bunch.images).mul(255 / INK).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).long()
    train, test = train_test_split(
        range(len(labels)), test_size=TEST_FRACTION, random_state=SPLIT_SEED, stratify=labels
    )
    scaled = pixels[train].double() / 255
    preprocessing = Preprocessing(
        image_size=image_size,
        crop_fraction=crop_fraction,
        mean=(round(scaled.mean().item(), 4),),
        std=(round(scaled.std().item(), 4),),
    )
    images = preprocessing.resize(pixels)
    return ImageData(
        name="digits",
        class_names=tuple(str(name) for name in bunch.target_names),
        preprocessing=preprocessing,
        train=InMemory(images[train], labels[train]),
        test=InMemory(images[test], labels[test]),
        augmentation=unchanged,
        workers=0,
    )
