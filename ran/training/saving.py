"""Lightning checkpoints that survive a kill, a full disk and a damaged file."""

import os
import signal
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from ..errors import UserError
from ..files import replacing, to_disk
from ..weights.network_card import CARD_KEY, KEPT, PROCESSES_KEY

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
#: What a training needs of a checkpoint to go on.
PARTS = {"pytorch-lightning_version", "state_dict", "loops", "optimizer_states", CARD_KEY}
#: Steps between two looks at what costs a GPU a halt, or several processes a message.
LOOK_EVERY = 16


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
            with replacing(path) as partial:
                with partial.open("wb") as file:
                    torch.save(checkpoint, file)
                if path.name == LAST and path.exists():
                    to_disk(partial)
                    _keep_as_previous(path)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path}: cannot write the checkpoint: {_reason(error)}") from None

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Executes nothing in the file, whatever ``weights_only`` says.

        Raises UserError where there is no readable checkpoint.
        """
        try:
            # torch compares no checksum: a flipped bit would be a weight like any other
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(damaged)
            content = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except FileNotFoundError:
            raise UserError(f"{path}: expected a checkpoint, found no file there") from None
        except Exception:  # a damaged pickle raises whatever its bytes happen to say
            raise UserError(
                f"{path}: expected a readable checkpoint of tensors and numbers"
            ) from None
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
    return int(_mapped(checkpoint)["global_step"])


def processes_of(checkpoint: Path) -> int | None:
    """How many trained a readable checkpoint; None where it does not say so."""
    return _mapped(checkpoint).get(PROCESSES_KEY)


def _mapped(checkpoint: Path) -> dict[str, Any]:
    """The content of a readable checkpoint, whose tensors are not read."""
    content: dict[str, Any] = torch.load(checkpoint, mmap=True, weights_only=True)
    return content


class LossGuard(L.Callback):
    """Stops a training whose loss is no longer a number, before that reaches a checkpoint.

    Args:
        learning_rate: at a step.
        folder: where the checkpoints are.
    """

    def __init__(self, learning_rate: Callable[[int], float], folder: Path) -> None:
        self._learning_rate = learning_rate
        self._folder = folder
        self._bad: Tensor | None = None

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        loss = outputs["loss"].detach()
        # the optimizer has not yet made the step that an unfinished part belongs to
        unfinished = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
        step = trainer.global_step + unfinished
        # the first bad step, or a step that never comes; kept on the device, which does not wait
        never = torch.full((), torch.iinfo(torch.int64).max, device=loss.device)
        now = torch.where(loss.isfinite(), never, torch.full_like(never, step))
        self._bad = now if self._bad is None else torch.minimum(self._bad, now)
        if loss.device.type == "cpu" or step % LOOK_EVERY == 0:
            self.check()

    def check(self) -> None:
        """Raises UserError that names the first step whose loss was not finite."""
        if self._bad is None:
            return
        step = int(self._bad)
        if step != torch.iinfo(torch.int64).max:
            raise self._error(f"loss: not a finite number at step {step}", step)

    def check_weights(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """``check``, and the same of the weights: a good loss may have led to bad ones."""
        self.check()
        values = [value for value in pl_module.state_dict().values() if value.is_floating_point()]
        if not bool(torch.nn.utils.get_total_norm(values).isfinite()):
            step = trainer.global_step
            raise self._error(f"weights: not finite numbers after step {step}", step)

    def _error(self, what: str, step: int) -> UserError:
        last = self._folder / LAST
        kept = f"; {last} is from before it" if last.exists() else ""
        return UserError(f"{what}, learning rate {self._learning_rate(step - 1):.4g}{kept}")


class StopRequest(L.Callback):
    """Notes that somebody asked the training to stop, by SIGTERM or by Ctrl-C.

    A second such signal ends the program as it always does.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Here because Lightning has set its own handlers by now, which talk to the other
        # processes in the middle of whatever this one is doing. It puts the old ones back.
        with suppress(ValueError):  # not the main thread, where signals arrive
            for number, usual in _STOPPING.items():
                signal.signal(number, partial(self._note, usual))

    def _note(self, usual: Any, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, usual)


_STOPPING = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}


class Checkpoints(Checkpoint):
    """Writes ``last.ckpt`` every few steps and after each epoch, and ``best.ckpt``.

    ``last.ckpt`` holds all that a training needs to continue exactly; ``best.ckpt`` the network of
    the epoch with the highest test accuracy, the first of several.

    Args:
        folder: to write to.
        every: steps between two of ``last.ckpt`` within an epoch.
        keep_every: epochs between two whose network is kept under a name of its own; 0 for none.
        accumulate: batches in a step.
        guard: asked before anything is written.
        stop: asked after each step; the training ends with the exit code that shells use.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        keep_every: int,
        accumulate: int,
        guard: LossGuard,
        stop: StopRequest,
    ) -> None:
        self._folder, self._every, self._accumulate = folder, every, accumulate
        self._keep_every = keep_every
        self._guard, self._stop = guard, stop
        self._best = -1.0

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        done = batch_idx + 1
        if done % self._accumulate or done == trainer.num_training_batches or trainer.should_stop:
            return  # gradients are not saved; and an epoch's end is, after its test
        stop = self._stopping(trainer, always=trainer.world_size == 1)
        if stop or trainer.global_step % self._every == 0:
            self._save(trainer, pl_module, LAST)
        if stop:
            self._end(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        accuracy = float(trainer.callback_metrics["test_accuracy"])
        if accuracy > self._best:
            self._best = accuracy
            self._save(trainer, pl_module, BEST)
        epoch = trainer.current_epoch + 1
        if self._keep_every and epoch % self._keep_every == 0:
            self._save(trainer, pl_module, KEPT.format(epoch))
        self._save(trainer, pl_module, LAST)
        if self._stopping(trainer, always=True):
            self._end(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = state_dict["best"]

    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule, name: str) -> None:
        self._guard.check_weights(trainer, pl_module)
        trainer.save_checkpoint(self._folder / name, weights_only=name != LAST)

    def _stopping(self, trainer: L.Trainer, *, always: bool) -> bool:
        """Whether any process is to stop: the same answer in all of them."""
        if not always and trainer.global_step % LOOK_EVERY:
            return False
        asked = self._stop.signal is not None
        return trainer.strategy.reduce_boolean_decision(asked, all=False)

    def _end(self, trainer: L.Trainer) -> None:
        raise SystemExit(128 + (self._stop.signal or signal.SIGTERM))


def _keep_as_previous(path: Path) -> None:
    previous = path.with_name(PREVIOUS)
    try:
        with replacing(previous) as kept:
            kept.hardlink_to(path)
    except OSError:  # a file system without links; for a moment ``previous`` alone is there
        os.replace(path, previous)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
