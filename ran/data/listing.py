"""Which files of a folder are its images."""

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError

#: File name endings that count as images in a folder.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".jp2", ".avif"),
)
#: What systems put beside somebody's files, without a dot before it.
_SYSTEM = frozenset(
    {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin"}
    | {"system volume information", "lost+found", "__pycache__"}
)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is the system's or a program's, not the user's."""
    return name.startswith(".") or name.lower() in _SYSTEM


def image_files(folder: Path) -> list[Path]:
    """The image files in ``folder`` at any depth, by the names of their folders, then their own.

    Hidden files and folders are left out, ``folder`` itself may be one. Links to folders are
    followed, but not back into a folder that they lie in.

    Raises:
        UserError: names a folder that may not be read.
    """
    found = _walk(str(folder), frozenset())
    return [Path(*pair) for pair in sorted(os.path.split(path) for path in found)]


def _walk(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    try:
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in above:
            return
        with os.scandir(folder) as listing:
            entries = [entry for entry in listing if not is_hidden(entry.name)]
    except OSError as error:
        raise UserError(f"{folder}: expected a folder to read: {error.strerror}") from None
    for entry in entries:
        if entry.is_dir():
            yield from _walk(entry.path, above | {(here.st_dev, here.st_ino)})
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            yield entry.path
