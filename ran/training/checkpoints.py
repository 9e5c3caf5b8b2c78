"""Lightning checkpoints that survive a kill, a full disk and a damaged file."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from ..errors import UserError
from ..files import replacing, to_disk
from ..weights.saved import CARD_KEY, PROCESSES_KEY, read_checkpoint

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
#: What a training needs of a checkpoint to go on.
PARTS = {"pytorch-lightning_version", "state_dict", "loops", "optimizer_states", CARD_KEY}


class CheckpointFiles(CheckpointIO):
    """Writes a checkpoint to a new file and renames it; reads tensors and numbers only.

    ``last.ckpt`` becomes ``previous.ckpt`` when the next one is complete on disk, so that one of
    them is readable at any moment.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Raises UserError where it cannot be written; the files that were there stay."""
        path = Path(path)
        try:
            with replacing(path, "the checkpoint") as partial:
                with partial.open("wb") as file:
                    torch.save(checkpoint, file)
                if path.name == LAST and path.exists():
                    to_disk(partial)
                    _keep_as_previous(path)
        except (OSError, RuntimeError) as error:  # torch's, where no file's error is below it
            raise UserError(f"{path}: cannot write the checkpoint: {_reason(error)}") from None

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """On the CPU; executes nothing in the file, whatever ``weights_only`` says.

        Raises UserError where there is no readable checkpoint.
        """
        content = read_checkpoint(Path(path), whole=True)
        if not isinstance(content, dict) or not content.keys() >= PARTS:
            raise UserError(f"{path}: expected a checkpoint that ran train can continue from")
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def find_checkpoint(folder: Path) -> tuple[Path | None, list[UserError]]:
    """The newest checkpoint in ``folder`` that a training can continue from; None without any.

    Also returns what is wrong with newer ones, which are damaged.

    Raises:
        UserError: there are some, and none of them is readable.
    """
    errors = []
    for name in (LAST, PREVIOUS):
        if (folder / name).exists():
            try:
                CheckpointFiles().load_checkpoint(folder / name)
            except UserError as error:
                errors.append(error)
            else:
                return folder / name, errors
    if errors:
        raise errors[0]
    return None, []


def step_of(checkpoint: Path) -> int:
    """The step of the optimizer after which a readable checkpoint was written."""
    return int(_without_tensors(checkpoint)["global_step"])


def processes_of(checkpoint: Path) -> int | None:
    """How many trained a readable checkpoint; None where it does not say so."""
    return _without_tensors(checkpoint).get(PROCESSES_KEY)


def _without_tensors(checkpoint: Path) -> dict[str, Any]:
    """The content of a readable checkpoint, whose tensors are not read."""
    with checkpoint.open("rb") as file:  # not mapped: torch wants a name in UTF-8 for that
        content: dict[str, Any] = torch.load(file, map_location="meta", weights_only=True)
    return content


def _keep_as_previous(path: Path) -> None:
    previous = path.with_name(PREVIOUS)
    try:
        with replacing(previous) as kept:
            kept.hardlink_to(path)
    except (OSError, UserError):
        # a file system without links; for a moment ``previous`` alone is there
        os.replace(path, previous)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
