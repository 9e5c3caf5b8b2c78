"""Image files decoded, whatever they are: every image that is read comes through here."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from ..errors import UserError
from ..files import require_regular
from ..processes import usable_cores
from .samples import FLOAT, Samples, samples_of, to_8_bits

#: Pillow's names of the formats that are read, by what a file holds, however it is called. Others
#: that Pillow knows start programs (EPS), read further files, or are no pictures.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")

#: A path, or an open file, which timm's readers give.
Source = str | Path | IO[bytes]


def open_image(source: Source, channels: int) -> Image.Image:
    """The decoded image, upright, as 8-bit grayscale (``channels`` 1) or RGB (3).

    Of an animation or a file of several pages the first one. Deeper samples become 8 bits by the
    range that the file gives them (see ``ran.data.samples``). Transparency and colour profiles are
    left aside, as torchvision and timm do: what counts is the colour that is stored.

    Raises:
        UserError: names the file, if it is missing, is no image or no regular file, is damaged, or
            has samples whose range is unknown.
    """
    try:
        return _converted(_decode(source), channels)
    except Exception as error:  # every decoder has exceptions of its own
        raise _unreadable(source, error) from None


def decoded_image(image: Image.Image, channels: int, name: str) -> Image.Image:
    """``open_image`` of one that a program opened or made; it stays as it is.

    Raises UserError that calls it ``name``.
    """
    try:
        samples = Samples(32 if image.mode.startswith(("I", "F")) else 8)
        if image.mode.startswith("I;16"):
            samples = Samples(16, high=65535)
        elif image.mode == "F":
            samples = Samples(32, kind=FLOAT)
        return _converted(to_8_bits(_upright(image), samples), channels)
    except Exception as error:
        raise _unreadable(name, error) from None


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
        image = _decode(path, draft=True)
        _converted(image, 3)
    except Exception as error:
        if skip:
            return _unreadable(path, error)
        raise _unreadable(path, error) from None
    return image.mode in ("1", "L")


def _decode(source: Source, *, draft: bool = False) -> Image.Image:
    """Upright, of 8 bits, in the colours it is stored in; a ``draft`` may be smaller."""
    if isinstance(source, str | Path):
        require_regular(source, "an image")
        if not os.stat(source).st_size:
            raise UserError(f"{source}: expected a readable image: it is empty")
        with open(source, "rb") as file:
            return _decode(file, draft=draft)
    with Image.open(source, formats=_formats()) as image:
        samples = samples_of(image, source)
        if draft:
            # A JPEG decoded at an eighth of its size is read to the end at a third of the cost.
            image.draft(image.mode, (1, 1))
        image.load()
        upright = _upright(image)
    return to_8_bits(upright, samples)


def _upright(image: Image.Image) -> Image.Image:
    """A copy, turned as its EXIF says."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # of EXIF that is damaged, and so says nothing of how the camera was held
        return image.copy()


def _converted(image: Image.Image, channels: int) -> Image.Image:
    # of which Pillow warns that it is lost
    image.info.pop("transparency", None)
    # of which Pillow knows one way on alone; those of La are multiplied by their transparency
    if between := {"La": "LA", "LAB": "RGB"}.get(image.mode):
        image = image.convert(between)
    return image.convert("L" if channels == 1 else "RGB")


@cache
def _formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _unreadable(source: Source, error: Exception) -> UserError:
    name = source if isinstance(source, str | Path) else getattr(source, "name", "image")
    if isinstance(error, UserError):
        return error
    if isinstance(error, FileNotFoundError):
        return UserError(f"{name}: expected an image, found nothing there")
    if isinstance(error, IsADirectoryError):
        return UserError(f"{name}: expected an image, found a folder")
    if isinstance(error, UnidentifiedImageError):
        reason = f"it is none of {', '.join(_formats())}"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = " ".join(str(error).split())
    return UserError(f"{name}: expected a readable image: {reason or type(error).__name__}")
