"""A training in a process of its own, which kills itself where the first argument says.

``step:N``: after step N, before anything is saved; ``save:N``: half-way through the Nth write of a
checkpoint; ``never``. ``stop1:N`` and ``kill1:N``: after step N process 1 of several stops or kills
itself. The second argument is a file of settings as JSON. With a third, a folder,
every process of the training writes the weights it ends with there.
"""

import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch

import ran
from ran.errors import UserError


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KillAfterStep(L.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            kill()


class LoseSecond(L.Callback):
    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == 1:
            os.kill(os.getpid(), self.number)


class SaveWeights(L.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch.save(pl_module.state_dict(), self.folder / f"{trainer.global_rank}.pt")


def kill_in_save(number: int) -> None:
    """Makes the ``number``th torch.save write half a file and end the process."""
    saves, save = [], torch.save

    def save_half(content: Any, file: Any) -> None:
        saves.append(content)
        if len(saves) < number:
            return save(content, file)
        buffer = io.BytesIO()
        save(content, buffer)
        file.write(buffer.getvalue()[: buffer.tell() // 2])
        file.flush()
        kill()

    torch.save = save_half  # type: ignore[assignment]


if __name__ == "__main__":
    where, _, number = sys.argv[1].partition(":")
    callbacks: list[L.Callback] = []
    if where == "step":
        callbacks.append(KillAfterStep(int(number)))
    if where in ("stop1", "kill1"):
        signals = {"stop1": signal.SIGSTOP, "kill1": signal.SIGKILL}
        callbacks.append(LoseSecond(int(number), signals[where]))
    if where == "save":
        kill_in_save(int(number))
    if len(sys.argv) > 3:
        callbacks.append(SaveWeights(Path(sys.argv[3])))
    try:
        ran.train(callbacks=callbacks, **json.loads(Path(sys.argv[2]).read_text()))
    except UserError as error:  # as the command line does
        print(f"ran: {error}", file=sys.stderr)
        sys.exit(2)
