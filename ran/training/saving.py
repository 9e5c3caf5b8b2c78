"""When a training saves, and that it does so before it is stopped."""

import signal
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from ..weights.network_card import KEPT
from .checkpoints import BEST, LAST
from .stopping import LOOK_EVERY, LossGuard, StopRequest


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
