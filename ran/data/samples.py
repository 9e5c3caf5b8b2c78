"""Samples of more than 8 bits as 8 bits, by the range that the file gives them."""

import struct
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from PIL import Image

#: TIFF's tags, by their numbers in the specification (revision 6.0).
_BITS, _PHOTOMETRIC, _FORMAT = 258, 262, 339
_LEAST, _GREATEST = (340, 280), (341, 281)  # SMin-, MinSampleValue; SMax-, MaxSampleValue
_WHITE_IS_ZERO = 0
_UNSIGNED, _SIGNED, FLOAT = 1, 2, 3
_KINDS = {_UNSIGNED: "integers", _SIGNED: "signed integers", FLOAT: "floating-point numbers"}
#: Images of 16 bits a sample whose values are all below this may be 10, 12 or 14 bits in 16.
_LOWEST_QUARTER = 1 << 14
_PNG_CHUNKS = 64
#: Bytes in which a JPEG 2000 file's codestream begins, after what describes its colours.
_JPEG_2000_HEADER = 1 << 20


@dataclass(frozen=True)
class Samples:
    """What the samples of a file mean.

    Attributes:
        bits: of each.
        low, high: black and white, by what the file says; None where it says nothing.
        stated: the file itself says that range; its format alone does not.
        kind: integers, signed integers or floating-point numbers, by TIFF's number.
        inverted: ``low`` is white.
        significant: bits of the instrument that PNG's chunk sBIT names.
    """

    bits: int = 8
    low: float = 0
    high: float | None = None
    stated: bool = False
    kind: int = _UNSIGNED
    inverted: bool = False
    significant: int | None = None


def samples_of(image: Image.Image, file: IO[bytes]) -> Samples:
    """What an opened image's header says of its samples; ``file`` is what it is read from."""
    if image.format == "TIFF":
        return _tiff_samples(image.tag_v2)  # type: ignore[attr-defined]
    if image.format == "PNG":
        bits, significant = _png_depth(file)
        return Samples(bits, high=2**bits - 1, significant=significant)
    if image.mode == "F":
        return Samples(32, kind=FLOAT)
    # Pillow scales these to 16 or 8 bits by the greatest value, or the precision, in the file's
    # header. All 16 bits are what programs write there of any 16-bit array, and so say nothing.
    if image.format == "PPM" and (most := _pnm_greatest(image)) > 255:
        return Samples(16, high=65535, stated=most < 65535)
    if image.format == "JPEG2000" and (bits := _jpeg_2000_depth(file)) > 8:
        return Samples(16, high=65535, stated=bits < 16)
    return Samples(32) if image.mode.startswith("I") else Samples()


def to_8_bits(image: Image.Image, samples: Samples) -> Image.Image:
    """``image``, of any mode that Pillow decodes to, with samples of 8 bits.

    Integers of 16 bits keep their high byte; a range that the file states goes from 0 to 255.

    Raises:
        ValueError: says why the samples' range is unknown.
    """
    if not image.mode.startswith(("I", "F")):
        _check_bytes(image, samples)
        return image
    values = np.asarray(image)
    if samples.kind == _UNSIGNED and values.dtype == np.int32 and samples.bits == 32:
        values = values.view(np.uint32)  # Pillow's mode has no sign bit to spare
    if samples.kind == FLOAT and not np.isfinite(values).all():
        raise ValueError("its samples are NaN or infinite")
    low, high = samples.low, samples.high
    if high is None:
        raise ValueError(
            f"the range of its {samples.bits}-bit {_KINDS[samples.kind]} is unknown: no "
            "SMinSampleValue and SMaxSampleValue say it"
        )
    least, greatest = values.min().item(), values.max().item()
    if samples.stated and not low <= least <= greatest <= high:
        raise ValueError(
            f"it has samples of {least:g} to {greatest:g}, and says {low:g} to {high:g}"
        )
    if not samples.stated and 0 < greatest < _LOWEST_QUARTER and samples.significant != 16:
        high = _significant_range(values, samples, greatest)
    # Exact for integers, and for the 16-bit ones that are usual the high byte.
    whole = low == 0 and high in (2**10 - 1, 2**12 - 1, 2**14 - 1, 2**16 - 1)
    if whole and values.dtype.kind != "f":
        shift = int(high).bit_length() - 8
        scaled = values.astype(np.uint16) >> shift
    else:
        scaled = np.rint((values.astype(np.float64) - low) * (255 / (high - low)))
    result = scaled.astype(np.uint8)
    return Image.fromarray(255 - result if samples.inverted else result)


def _significant_range(values: Any, samples: Samples, greatest: int) -> int:
    """The range of 16-bit samples that leave the high bits unused."""
    significant = samples.significant
    # a PNG's samples fill 16 bits, as its specification has it, or they lie in the low ones
    if significant and greatest < 1 << significant:
        unused = (1 << (16 - significant)) - 1
        return (1 << significant) - 1 if (values & unused).any() else 65535
    raise ValueError(
        f"its 16-bit samples are at most {greatest}: {greatest.bit_length()} bits in 16, whose "
        "range the file does not say (TIFF's MaxSampleValue, PNG's sBIT)"
    )


def _check_bytes(image: Image.Image, samples: Samples) -> None:
    """Raises ValueError where bytes that Pillow took from the samples are not what they mean."""
    if samples.kind != _UNSIGNED:
        raise ValueError(f"the range of its {samples.bits}-bit {_KINDS[samples.kind]} is unknown")
    if samples.bits <= 8:
        return
    if samples.stated and (samples.low, samples.high) != (0, 2**samples.bits - 1):
        raise ValueError(f"its {samples.bits}-bit colours have a range of their own")
    colours = image.getextrema()[: 1 if image.mode == "LA" else 3]
    greatest = max(high for _, high in colours)  # type: ignore[misc]  # pairs, one a channel
    if not samples.stated and samples.significant != 16 and greatest < _LOWEST_QUARTER >> 8:
        raise ValueError(
            "its 16-bit colours are all below a quarter of white: fewer bits in 16, whose range "
            "the file does not say"
        )


def _tiff_samples(tags: Any) -> Samples:
    bits, kind = _first(tags.get(_BITS, 1)), _first(tags.get(_FORMAT, _UNSIGNED))
    low, high = (
        next((float(_first(tags[tag])) for tag in pair if tag in tags), None)
        for pair in (_LEAST, _GREATEST)
    )
    stated = high is not None and (low is not None or kind == _UNSIGNED)
    if stated and not (low or 0) < (high or 0) < float("inf"):
        raise ValueError(f"it says that its samples range from {low or 0:g} to {high:g}")
    if kind == _UNSIGNED and bits <= 16 and not stated:
        low, high = 0, 2**bits - 1
    return Samples(
        bits,
        low=low or 0,
        high=high if stated or (kind == _UNSIGNED and bits <= 16) else None,
        stated=stated or bits == 12,
        kind=kind if kind in _KINDS else _UNSIGNED,
        # Pillow turns bytes over itself
        inverted=tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO,
    )


def _pnm_greatest(image: Image.Image) -> int:
    """What the header of an opened PNM, PGM or PPM calls white; 255 where it is of no consequence.

    Pillow keeps it as its decoder's argument, but for the two that need no scaling.
    """
    form = image.tile[0][3]  # type: ignore[attr-defined]  # of images that are files
    if isinstance(form, tuple):
        return int(form[1])
    return 65535 if form == "I;16B" else 255


def _jpeg_2000_depth(file: IO[bytes]) -> int:
    """Bits of a sample in the codestream's size segment, 16 where that cannot be found."""
    place = file.tell()
    file.seek(0)
    start = file.read(_JPEG_2000_HEADER)
    file.seek(place)
    _, found, segment = start.partition(b"\xff\x4f\xff\x51")  # SOC, SIZ
    return (segment[38] & 0x7F) + 1 if found and len(segment) > 38 else 16


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def _png_depth(file: IO[bytes]) -> tuple[int, int | None]:
    """Bits of a sample, and how many of them the chunk sBIT calls significant, if it is there."""
    place = file.tell()
    try:
        file.seek(8)
        bits, significant = 8, None
        for _ in range(_PNG_CHUNKS):
            length, kind = struct.unpack(">I4s", file.read(8))
            if kind == b"IDAT":
                break
            if kind == b"IHDR":
                bits = file.read(length)[8]
            elif kind == b"sBIT":
                significant = file.read(length)[0]
            else:
                file.seek(length, 1)
            file.seek(4, 1)
        return bits, significant
    except (struct.error, IndexError):  # damaged, as whoever decodes it finds out
        return 8, None
    finally:
        file.seek(place)
