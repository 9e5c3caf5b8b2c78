"""The folder a training writes."""

import glob
import platform
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning
import torch

from ..errors import UserError
from ..files import is_abandoned, partial_path, read_json, require_folder, write_json
from ..weights.network_card import WEIGHTS_FILE, kept_epoch
from .saving import BEST, LAST, PREVIOUS

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

    An existing one may be written only with ``overwrite``, and only if a training wrote it and
    everything in it.
    """
    require_folder(folder)
    if not folder.exists():
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
    foreign = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.name not in RUN_FILES
        and ".partial-" not in entry.name
        and kept_epoch(entry) is None
    )
    if foreign:
        raise UserError(f"{folder}: expected files of `ran train` only, it holds {foreign[0]}")


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
    """Deletes what killed trainings had not finished writing, in ``folder`` and for it beside it.

    What a process that may still run is writing stays, and everything else.
    """
    for path in folder.glob(".*.partial-*"):
        if is_abandoned(path):
            _delete(path)
    for path in folder.parent.glob(f".{glob.escape(folder.stem)}.partial-*"):
        if path.is_dir() and is_abandoned(path):
            for entry in path.iterdir():  # a folder that was being made holds these alone
                if entry.name == RUN_FILE or is_abandoned(entry):
                    _delete(entry)
            with suppress(OSError):
                path.rmdir()


def _delete(path: Path) -> None:
    with suppress(OSError):  # it is in nobody's way
        path.unlink()


def start_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Makes ``folder`` anew, with the settings and versions in ``run.json``.

    Call ``check_folder`` first: what is there is deleted.
    """
    folder = folder.absolute()  # "." has no name to make another one of
    if folder.exists():
        _start_again(folder, settings)
        return
    # made under another name, so that a kill leaves no folder that nothing is known of
    partial = partial_path(folder)
    try:
        partial.mkdir(parents=True)
        write_run(partial, settings, {})
        partial.rename(folder)
    except (OSError, UserError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{folder}: cannot make the output folder: {error}") from None


def _start_again(folder: Path, settings: dict[str, Any]) -> None:
    # the folder stays, as it may be the one that this process works in; and so does its run.json
    # until the new one replaces it, so that a kill leaves no folder that nothing is known of
    try:
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != RUN_FILE:
                entry.unlink()
        write_run(folder, settings, {})
    except OSError as error:
        raise UserError(f"{folder}: cannot make the output folder: {error}") from None


def write_run(folder: Path, settings: dict[str, Any], results: dict[str, Any]) -> None:
    """Writes ``run.json``: what was asked for, what ran it and what came of it."""
    write_json(
        folder / RUN_FILE,
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
        },
    )
