"""What stops a training before its end: a loss that is no number, and a signal."""

import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ..errors import UserError
from .checkpoints import LAST

#: Steps between two looks at what costs a GPU a halt, or several processes a message.
LOOK_EVERY = 16


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
