"""Writing files so that a reader never sees half of one."""

import errno
import json
import os
import platform
import re
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from .errors import UserError
from .text import json_text

#: Seconds for which a part of a file of another machine's process must have been left alone.
ABANDONED = 3600
#: Bytes of a JSON file of this package: a million class names of 60 letters.
MOST_JSON = 64 << 20
_HOST = re.sub(r"[^\w-]", "_", platform.node(), flags=re.ASCII)[:40]
_PARTIAL = re.compile(r"\..*\.partial-(?:(?P<host>[\w-]*)-)?(?P<process>\d+)(?:\.[^.]*)?", re.ASCII)


def partial_path(path: Path) -> Path:
    """Where this process writes what becomes ``path``; the suffix stays."""
    return path.with_name(f".{path.stem}.partial-{_HOST}-{os.getpid()}{path.suffix}")


def is_abandoned(path: Path) -> bool:
    """Whether ``path`` is a ``partial_path`` that no process will finish.

    That of a process of this machine is one if the process has ended, or is this one, which has to
    ask before it writes. Processes of another machine, on a disk that several share, cannot be
    asked: what has not changed for an hour is taken to be left.
    """
    found = _PARTIAL.fullmatch(path.name)
    if not found:
        return False
    try:
        if found["host"] != _HOST:
            return time.time() - path.stat().st_mtime > ABANDONED
        process = int(found["process"])
        if process != os.getpid():
            os.kill(process, 0)  # sends nothing, and fails where there is no such process
            return False
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # gone by now, or somebody else's process
        return False
    return True


@contextmanager
def replacing(path: Path, what: str = "the file") -> Iterator[Path]:
    """Gives a new path beside ``path`` to write to; renamed to ``path`` if the block succeeds.

    It is on the disk by then. If the block raises, the new file is removed and ``path`` is as it
    was. The new name keeps the suffix, from which several writers choose the format.

    Raises:
        UserError: says that ``what`` cannot be written to ``path`` and why: the system refused it,
            in whichever exception the writer wraps that. Others stay as they are.
    """
    partial = partial_path(path)
    try:
        yield partial
        to_disk(partial)
        os.replace(partial, path)
    except Exception as error:
        reason = _refusal(error, (str(path), str(partial)))
        if reason is None:
            raise
        raise UserError(f"{path}: cannot write {what}: {reason}") from error
    finally:
        partial.unlink(missing_ok=True)


def _refusal(error: BaseException | None, names: tuple[str, ...]) -> str | None:
    """What the system said of a file of ``names``, or of one that it does not name.

    It may lie below the exception of a library: of a full disk torch's writer says "unexpected
    pos 64 vs 0", on top of the error of the file's own write.
    """
    while error is not None and not isinstance(error, UserError):
        if isinstance(error, OSError):
            known = error.filename is None or os.fsdecode(error.filename) in names
            return (error.strerror or " ".join(str(error).split())) if known else None
        error = error.__cause__ or error.__context__
    return None


def require_path(name: str, path: str | Path) -> Path:
    """``path``, unless it is empty: Python and shells take that for the current folder.

    Raises UserError that calls it ``name``.
    """
    if not os.fspath(path):
        raise UserError(f"{name}: expected a path, got an empty one")
    return Path(path)


def to_disk(path: Path) -> None:
    """Waits until ``path`` is on the disk, where some are found to be full only then."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno != errno.EINVAL:  # which says that this disk has no such wait
            raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(file)


def require_regular(path: Any, what: str) -> None:
    """Raises UserError where ``path`` is a device, a pipe or a socket: reading it may never end.

    ``what`` was expected there. A folder, or nothing, is left to who reads it, and so is what is no
    path, such as an open file.
    """
    if not isinstance(path, str | os.PathLike):
        return
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    for is_kind, kind in _SPECIAL:
        if is_kind(mode):
            raise UserError(f"{path}: expected {what}, found {kind}")


_SPECIAL = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def require_writable(path: Path, *, overwrite: bool) -> None:
    """Raises UserError unless ``path`` may be written: call it before the work, not after.

    An existing file may be only with ``overwrite``, a folder never.
    """
    if path.is_dir():
        raise UserError(f"{path}: expected a file to write, it is a folder")
    if not overwrite and (path.exists() or path.is_symlink()):
        raise UserError(f"{path}: expected a new file, it exists (--overwrite replaces it)")
    if not path.parent.is_dir():
        raise UserError(f"{path}: expected a folder to write in, {path.parent} is none")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{path}: expected a folder to write in, {path.parent} is read-only")


def require_folder(path: Path) -> None:
    """Raises UserError unless ``path`` is a folder or can be made one: call it before the work."""
    try:
        if path.is_dir():
            return
    except OSError as error:  # a name that is too long, or a parent that may not be searched
        raise UserError(f"{path}: expected a folder: {error.strerror}") from None
    if path.exists() or path.is_symlink():
        what = "a file" if path.exists() else "a link to nothing"
        raise UserError(f"{path}: expected a folder, it is {what}")
    there = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not there.is_dir():
        raise UserError(f"{path}: expected a folder to make it in, {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{path}: expected a folder to make it in, {there} is read-only")


@contextmanager
def stopping_cleanly() -> Iterator[None]:
    """Inside, SIGTERM raises SystemExit as SIGINT raises KeyboardInterrupt, so ``finally`` runs.

    Without it the process ends where it stands, and half a file that ``replacing`` would have
    removed stays. Does nothing outside the main thread, where signals do not arrive.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes ``content`` as indented JSON in one step."""
    with replacing(path) as partial:
        partial.write_text(json_text(content) + "\n", "utf-8")


def read_json(path: Path, *, format: str, version: int) -> dict[str, Any]:
    """Reads a JSON object that says ``{"format": format, "version": version, ...}``.

    Raises:
        UserError: the file is missing, is not such an object, or is of a newer version.
    """
    require_regular(path, f"a {format} file")
    try:
        if path.stat().st_size > MOST_JSON:
            raise ValueError(f"it is larger than {MOST_JSON >> 20} MiB")
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: expected a {format} file, found nothing there") from None
    except (OSError, RecursionError, ValueError) as error:
        raise UserError(f"{path}: expected a {format} file, cannot read it: {error}") from None
    if not isinstance(content, dict) or content.get("format") != format:
        raise UserError(f'{path}: expected JSON with "format": "{format}"')
    if content.get("version") != version:
        raise UserError(
            f"{path}: expected version {version} of {format}, got {content.get('version')!r}"
        )
    return content
