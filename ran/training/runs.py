"""The folder a training writes."""

import platform
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning
import torch

from ..errors import UserError
from ..files import is_abandoned, read_json, replacing, require_folder, write_json
from ..weights.network_card import kept_epoch
from ..weights.saved import WEIGHTS_FILE
from .checkpoints import BEST, LAST, PREVIOUS
from .lock import LOCK_FILE, FolderLock

RUN_FILE = "run.json"
METRICS_FILE = "metrics.csv"
CURVES_FILE = "curves.png"
MASKS_FILE = "masks.png"
#: What TensorBoard reads.
LOG_FOLDER = "tensorboard"
#: Everything a training may put into its folder, but for what it keeps of single epochs.
RUN_FILES = frozenset(
    {
        RUN_FILE,
        METRICS_FILE,
        CURVES_FILE,
        MASKS_FILE,
        WEIGHTS_FILE,
        "model.json",
        BEST,
        LAST,
        PREVIOUS,
        LOG_FOLDER,
    }
)

_FORMAT, _VERSION = "ran-run", 1


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raises UserError unless a training may write ``folder``. Changes nothing.

    One that is there and not empty may be written only with ``overwrite``, and only if a training
    wrote it and everything in it.
    """
    require_folder(folder)
    if is_new(folder):
        return
    if not overwrite:
        raise UserError(
            f"{folder}: expected a new output folder, it exists (--resume continues, --overwrite "
            "replaces)"
        )
    try:
        read_json(folder / RUN_FILE, format=_FORMAT, version=_VERSION)
    except UserError:
        raise UserError(
            f"{folder}: expected a folder written by `ran train`, it has no valid {RUN_FILE}"
        ) from None
    foreign = sorted(entry.name for entry in _entries(folder) if not _is_ours(entry))
    if foreign:
        raise UserError(f"{folder}: expected files of `ran train` only, it holds {foreign[0]}")


def is_new(folder: Path) -> bool:
    """Whether nothing is in ``folder``, but for what a killed training did not finish."""
    return not folder.exists() or all(
        entry.name == LOCK_FILE or is_abandoned(entry) for entry in _entries(folder)
    )


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: expected a folder to read: {error.strerror}") from None


def _is_ours(entry: Path) -> bool:
    return (
        entry.name in RUN_FILES
        or entry.name == LOCK_FILE
        or ".partial-" in entry.name
        or kept_epoch(entry) is not None
    )


def saved_values(folder: Path) -> dict[str, Any]:
    """The settings that the training in ``folder`` was started with, for ``make_settings``.

    Raises:
        UserError: no training wrote ``folder``.
    """
    require_folder(folder)
    content = read_json(folder / RUN_FILE, format=_FORMAT, version=_VERSION)
    settings = content.get("settings")
    if not isinstance(settings, dict):
        raise UserError(f"{folder / RUN_FILE}: expected a field 'settings', it has none")
    return {**settings, "output": folder, "resume": False, "overwrite": False}


def remove_leftovers(folder: Path) -> None:
    """Deletes what killed trainings had not finished writing in ``folder``.

    What a process that may still run is writing stays, and everything else.
    """
    for path in folder.glob(".*.partial-*"):
        if is_abandoned(path):
            with suppress(OSError):  # it is in nobody's way
                path.unlink()


def start_folder(
    folder: Path, settings: dict[str, Any], lock: FolderLock, *, overwrite: bool = False
) -> bool:
    """Makes ``folder``, or empties it, and writes the settings and versions to ``run.json``.

    Returns whether it was made. ``run.json`` is the first file of a training and, where it replaces
    another, complete before anything is deleted and in its place when all is: a kill or a full disk
    leaves the old one's name on what is old, or nothing that a new training would not begin with.

    Raises:
        UserError: it cannot be written, or is another training's by now.
    """
    made = not folder.exists()
    with _making(folder, made=made):
        folder.mkdir(parents=True, exist_ok=True)
        lock.take()
    check_folder(folder, overwrite=overwrite)  # now that nobody else can write to it
    with _making(folder, made=made), replacing(folder / RUN_FILE, "what is asked for") as new:
        write_run(new, settings, {})
        _empty(folder, {RUN_FILE, LOCK_FILE, new.name})
    return made


@contextmanager
def _making(folder: Path, *, made: bool) -> Iterator[None]:
    """Says of a disk's refusal that the folder cannot be made; leaves none that was ``made``."""
    try:
        yield
    except (OSError, UserError) as error:
        if isinstance(error.__cause__ or error, OSError):  # a UserError may say what it refused
            if made:
                discard_folder(folder, made=True)
            raise UserError(f"{folder}: cannot make the output folder: {error}") from None
        raise


def discard_folder(folder: Path, *, made: bool) -> None:
    """Deletes what a training wrote to ``folder``, and it too if the training has ``made`` it."""
    with suppress(OSError):
        _empty(folder, () if made else (LOCK_FILE,))
        if made:
            folder.rmdir()


def _empty(folder: Path, kept: Collection[str]) -> None:
    # the folder stays, as it may be the one that this process works in
    for entry in folder.iterdir():
        if entry.name in kept:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def lengthened(folder: Path) -> list[dict[str, int]]:
    """How the training in ``folder`` was lengthened: ``from`` and ``to`` how many epochs, after
    which ``step``."""
    found = read_json(folder / RUN_FILE, format=_FORMAT, version=_VERSION).get("lengthened", [])
    return found if isinstance(found, list) else []


def note_length(folder: Path, settings: dict[str, Any], step: int) -> None:
    """Has ``run.json`` say that a training goes on after ``step`` with more epochs, if it does."""
    before = saved_values(folder).get("epochs")
    if not isinstance(before, int) or settings["iterations"] or settings["epochs"] <= before:
        return
    change = {"from": before, "to": settings["epochs"], "step": step}
    write_run(folder / RUN_FILE, settings, {}, lengthened=[*lengthened(folder), change])


def write_run(
    path: Path,
    settings: dict[str, Any],
    results: dict[str, Any],
    *,
    lengthened: Sequence[dict[str, int]] = (),
) -> None:
    """Writes a ``run.json``: what was asked for, what ran it and what came of it."""
    write_json(
        path,
        {
            "format": _FORMAT,
            "version": _VERSION,
            "settings": settings,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "lightning": lightning.__version__,
            },
            "results": results,
            **({"lengthened": list(lengthened)} if lengthened else {}),
        },
    )
