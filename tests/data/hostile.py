"""A corpus of image files that are rare, damaged or made to harm, each with what is right."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

#: The values of a file that can be read, (height, width) gray or (height, width, 3); or a part of
#: the line that refuses it.
Right = np.ndarray | str
_RAMP = np.array([[0, 1, 2, 3]])
_GRAY = np.array([[0, 85, 170, 255]])
_POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


@dataclass(frozen=True)
class Hostile:
    """A file's name, what writes it to a path, and what is right."""

    name: str
    write: Callable[[Path], object]
    right: Right


def tiff(
    values: np.ndarray, *, bits: int = 0, tags: dict[int, float] | None = None, white: int = 1
) -> Callable[[Path], object]:
    """Writes a TIFF of one strip: (H, W) or (H, W, 3) of any dtype; ``tags`` are floats."""
    height, width = values.shape[:2]
    samples = values.shape[2] if values.ndim == 3 else 1
    bits = bits or values.dtype.itemsize * 8
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    if bits == 12:
        flat = values.flatten().astype(int)
        text = "".join(f"{value:012b}" for value in flat)
        text += "0" * (-len(text) % 8)
        data = int(text, 2).to_bytes(len(text) // 8, "big")

    def write(path: Path) -> None:
        shorts = {256: width, 257: height, 259: 1, 262: 2 if samples == 3 else white}
        shorts |= {277: samples, 278: height, 339: kind}
        entries = [(tag, 3, 1, struct.pack("<HH", value, 0)) for tag, value in shorts.items()]
        start = 8 + len(data)
        extra = struct.pack(f"<{samples}H", *[bits] * samples)
        if samples == 1:
            entries.append((258, 3, 1, struct.pack("<HH", bits, 0)))
        else:
            entries.append((258, 3, samples, struct.pack("<I", start)))
        entries += [(273, 4, 1, struct.pack("<I", 8)), (279, 4, 1, struct.pack("<I", len(data)))]
        for tag, value in (tags or {}).items():
            entries.append((tag, 11, 1, struct.pack("<f", value)))
        directory = struct.pack("<H", len(entries))
        for tag, type_, count, content in sorted(entries):
            directory += struct.pack("<HHI", tag, type_, count) + content
        head = struct.pack("<2sHI", b"II", 42, start + len(extra))
        path.write_bytes(head + data + extra + directory + struct.pack("<I", 0))

    return write


def png(
    width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]
) -> Callable[[Path], object]:
    """Writes a PNG whose unfiltered ``rows`` are given; ``chunks`` come before them."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(*each) for each in chunks)]
    parts += [chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    return lambda path: path.write_bytes(content)


def deep_png(values: np.ndarray, *chunks: tuple[bytes, bytes]) -> Callable[[Path], object]:
    """Writes (H, W) or (H, W, 3) as a PNG of 16 bits a sample."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width, height, 16, 2 if values.ndim == 3 else 0, rows, *chunks)


def content(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def saved(image: Image.Image, format: str, **options: Any) -> Callable[[Path], object]:
    return content(encoded(image, format, **options))


def _animation(format: str) -> Callable[[Path], object]:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("white", "black")]
    return saved(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)


def _palette() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    return image


def _turned() -> Callable[[Path], object]:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    return saved(Image.fromarray(_GRAY.astype(np.uint8)), "PNG", exif=exif)


def _constant(value: int, height: int = 4, width: int = 4) -> np.ndarray:
    return np.full((height, width, 3), value)


def corpus() -> list[Hostile]:
    """Deep and rare samples, odd containers, damage, and what takes memory or time."""
    deep = np.array([[0, 1365, 2730, 4095]], np.uint16)
    floats = np.array([[0, 1 / 3, 2 / 3, 1]], np.float32)
    word = np.array([[0, 21845, 43690, 65535]], np.uint16)
    red_blue = np.array([[[255, 0, 0], [0, 0, 255]]])
    ordinary = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    noise, jpeg = (encoded(Image.fromarray(pixels), format) for format in ("PNG", "JPEG"))
    unknown = "range"
    return [
        # samples of more than 8 bits, and of other kinds
        Hostile("float.tif", tiff(floats), unknown),
        Hostile("float-said.tif", tiff(floats, tags={340: 0, 341: 1}), _GRAY),
        Hostile("float-white-is-0.tif", tiff(floats, tags={340: 0, 341: 1}, white=0), 255 - _GRAY),
        Hostile("float-outside.tif", tiff(floats * 2, tags={340: 0, 341: 1}), "and says 0 to 1"),
        Hostile("float-no-range.tif", tiff(floats, tags={340: 1, 341: 1}), "range from 1 to 1"),
        Hostile("nan.tif", tiff(floats * np.nan, tags={340: 0, 341: 1}), "NaN"),
        Hostile("infinite.tif", tiff(np.full_like(floats, np.inf), tags={340: 0, 341: 1}), "NaN"),
        Hostile("12.tif", tiff(deep, bits=12), _GRAY),
        Hostile("12-in-16.tif", tiff(deep), "12 bits in 16"),
        Hostile("12-in-16-said.tif", tiff(deep, tags={281: 4095}), _GRAY),
        Hostile("16.tif", tiff(word), _GRAY),
        Hostile("16-white-is-0.tif", tiff(word, white=0), 255 - _GRAY),
        Hostile("16-black.tif", tiff(word * 0), _GRAY * 0),
        Hostile("16-colours.tif", tiff(np.stack([word] * 3, -1)), _GRAY),
        Hostile("12-in-16-colours.tif", tiff(np.stack([deep] * 3, -1)), "fewer bits in 16"),
        Hostile("signed-16.tif", tiff(deep.astype(np.int16)), unknown),
        Hostile("signed-16-said.tif", tiff(deep.astype(np.int16), tags={340: 0, 341: 4095}), _GRAY),
        Hostile("signed-8.tif", tiff(_RAMP.astype(np.int8)), unknown),
        Hostile("32.tif", tiff(deep.astype(np.uint32)), unknown),
        Hostile("32-said.tif", tiff(word.astype(np.uint32) << 16, tags={281: 65535 << 16}), _GRAY),
        Hostile("signed-32.tif", tiff(deep.astype(np.int32)), unknown),
        Hostile("16.png", deep_png(word), _GRAY),
        Hostile("12-in-16.png", deep_png(deep), "12 bits in 16"),
        Hostile("12-in-16-low.png", deep_png(deep, (b"sBIT", b"\x0c")), _GRAY),
        Hostile("12-in-16-high.png", deep_png(deep << 4, (b"sBIT", b"\x0c")), _GRAY),
        Hostile("16-dark.png", deep_png(deep, (b"sBIT", b"\x10")), deep >> 8),
        Hostile("16-colours.png", deep_png(np.stack([word] * 3, -1)), _GRAY),
        Hostile("12-in-16-colours.png", deep_png(np.stack([deep] * 3, -1)), "fewer bits in 16"),
        Hostile("3.pgm", content(b"P5 4 1 3\n" + bytes(_RAMP.flatten().tolist())), _GRAY),
        Hostile("4095.pgm", content(b"P5 4 1 4095\n" + deep.astype(">u2").tobytes()), _GRAY),
        Hostile("65535.pgm", content(b"P5 4 1 65535\n" + word.astype(">u2").tobytes()), _GRAY),
        Hostile("dark.pgm", content(b"P5 4 1 65534\n" + deep.astype(">u2").tobytes()), deep >> 8),
        Hostile("12-in-16.pgm", saved(Image.fromarray(deep), "PPM"), "12 bits in 16"),
        Hostile("12-in-16-plain.pgm", content(b"P2 2 1 65535\n0 4095\n"), "12 bits in 16"),
        Hostile(
            "12-in-16.ppm",
            content(b"P6 4 1 65535\n" + np.stack([deep] * 3, -1).astype(">u2").tobytes()),
            "fewer bits in 16",
        ),
        Hostile(
            "4095.ppm",
            content(b"P6 4 1 4095\n" + np.stack([deep] * 3, -1).astype(">u2").tobytes()),
            _GRAY,
        ),
        Hostile("float.ppm", content(b"Pf\n4 1\n-1.0\n" + floats.tobytes()), unknown),
        Hostile("16.jp2", saved(Image.fromarray(word), "JPEG2000", no_jp2=False), _GRAY),
        Hostile("12-in-16.jp2", saved(Image.fromarray(deep), "JPEG2000"), "12 bits in 16"),
        Hostile("8.jp2", saved(Image.fromarray(_GRAY.astype(np.uint8)), "JPEG2000"), _GRAY),
        # colours
        Hostile("palette.png", saved(_palette(), "PNG"), red_blue),
        Hostile("palette-clear.png", saved(_palette(), "PNG", transparency=b"\0\x80"), red_blue),
        Hostile("palette-one-clear.gif", saved(_palette(), "GIF", transparency=1), red_blue),
        Hostile(
            "cmyk.tif",
            saved(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"),
            np.broadcast_to([255, 0, 0], (4, 4, 3)),
        ),
        Hostile(
            "cmyk.jpg",
            saved(Image.new("CMYK", (8, 8), (0, 0, 0, 102)), "JPEG"),
            _constant(153, 8, 8),
        ),
        Hostile("clear.png", saved(Image.new("RGBA", (4, 4), (9, 9, 9, 0)), "PNG"), _constant(9)),
        Hostile(
            "lab.tif", saved(Image.new("LAB", (4, 4), (255, 128, 128)), "TIFF"), _constant(255)
        ),
        Hostile(
            "profile.png",
            saved(ordinary, "PNG", icc_profile=b"no profile"),
            np.arange(48).reshape(4, 4, 3),
        ),
        # other things that a file may hold
        Hostile("turned.png", _turned(), _GRAY.T),
        Hostile(
            "bad-exif.png",
            saved(ordinary, "PNG", exif=b"Exif\0\0nothing of the kind"),
            np.arange(48).reshape(4, 4, 3),
        ),
        Hostile("animated.gif", _animation("GIF"), _constant(255)),
        Hostile("animated.png", _animation("PNG"), _constant(255)),
        Hostile("animated.webp", _animation("WEBP"), _constant(255)),
        Hostile(
            "text.png",
            png(
                4,
                1,
                8,
                0,
                b"\0" + bytes(_GRAY.flatten().tolist()),
                (b"zTXt", b"a\0\0" + zlib.compress(bytes(200 << 20), 9)),
            ),
            "too large",
        ),
        Hostile(
            "pages.tif",
            saved(
                Image.new("L", (4, 4), 255),
                "TIFF",
                save_all=True,
                append_images=[Image.new("L", (4, 4), 0)],
            ),
            _constant(255),
        ),
        # damage
        Hostile("empty.png", content(b""), "it is empty"),
        Hostile("signature.png", content(noise[:8]), "none of JPEG, PNG"),
        Hostile("half.png", content(noise[: len(noise) // 2]), "readable image"),
        Hostile("half.jpg", content(jpeg[: len(jpeg) // 2]), "truncated"),
        Hostile("nothing.webp", content(b"RIFF\x10\0\0\0WEBPVP8 "), "readable image"),
        Hostile("no-size.png", png(0, 0, 8, 0, b""), "readable image"),
        # what other programs would be started for, or is no picture
        Hostile("postscript.png", content(_POSTSCRIPT), "none of JPEG, PNG"),
        Hostile("icon.png", saved(ordinary.resize((16, 16)), "ICO"), "none of JPEG, PNG"),
        Hostile("web-page.jpg", content(b"<!DOCTYPE html><title>404</title>"), "none of JPEG, PNG"),
        # what waits for ever, never ends, or is nothing
        Hostile("pipe.png", os.mkfifo, "found a pipe"),
        Hostile("device.png", lambda path: path.symlink_to("/dev/zero"), "found a device"),
        Hostile("gone.png", lambda path: path.symlink_to("nothing"), "found nothing there"),
        # little in the file, much in memory
        Hostile(
            "long.png", png(1, 2_000_000, 8, 0, b"\0\x80" * 2_000_000), np.full((2_000_000, 1), 128)
        ),
        Hostile(
            "wide.png",
            png(2_000_000, 1, 1, 0, b"\0" + b"\xff" * 250_000),
            np.full((1, 2_000_000), 255),
        ),
        Hostile("bomb.png", png(60_000, 60_000, 1, 0, b"\0" * 1000), "decompression bomb"),
    ]
