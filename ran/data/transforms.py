"""What is done to one image after another: to its size, or cropped and coloured at random."""

from typing import Any

from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from ..errors import UserError
from .images import Preprocessing
from .options import DataOptions


def to_size(preprocessing: Preprocessing, image: Image.Image) -> Tensor:
    """(C, size, size) uint8: resized, its centre cropped."""
    return preprocessing.resize(tvf.pil_to_tensor(image))


def training_transform(image_size: int, options: DataOptions) -> Any:
    """timm's transforms for ImageNet: random scale, ratio and colour, or its auto-augmentation.

    Without the flip, which is done in batches, on the device; so is the normalisation.
    """
    try:
        return create_transform(
            image_size,
            is_training=True,
            scale=options.scale,
            ratio=options.ratio,
            color_jitter=options.color_jitter,
            auto_augment=options.auto_augment,
            hflip=0.0,
            interpolation="bilinear",
            normalize=False,
        )
    except Exception as error:  # timm's parser of names asserts, indexes and converts
        if options.auto_augment is None:
            raise
        reason = str(error) or type(error).__name__
        expected = "a name of timm's, such as 'rand-m9'"
        raise UserError(
            f"auto_augment: expected {expected}, got {options.auto_augment!r}: {reason}"
        ) from None
