"""What a training shows while it runs."""

import time
from typing import Any, cast

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from .callbacks import MetricsTable
from .classifier import ImageClassifier

#: Seconds between two readings of loss and accuracy, for which a GPU has to be waited for.
REFRESH = 0.5


class ProgressLine(L.Callback):
    """A live bar over all steps in a terminal; one line an epoch where output is kept.

    Args:
        console: where to.
        table: must come before this callback, and gives it the metrics.
        steps: of the whole training.
    """

    def __init__(self, console: Console, table: MetricsTable, steps: int) -> None:
        self._console = console
        self._table = table
        self._steps = steps
        self._task = TaskID(0)
        self._next = 0.0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._task = self._progress.add_task(
            self._epoch(trainer), total=self._steps, completed=trainer.global_step, metrics=""
        )
        self._progress.start()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._progress.disable or time.perf_counter() < self._next:
            return
        loss, accuracy = cast(ImageClassifier, pl_module).train_means(all_processes=False)
        tested = self._table.rows[-1:]
        self._progress.update(
            self._task,
            completed=trainer.global_step,
            description=self._epoch(trainer),
            metrics=f"loss {loss:.4f}  accuracy {accuracy:.1%}  {self._table.speed:,.0f} images/s"
            + "".join(f"  tested {row['test_accuracy']:.2%}" for row in tested),
        )
        self._next = time.perf_counter() + REFRESH

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        row = self._table.rows[-1]
        width = len(str(trainer.max_epochs))
        self._progress.update(self._task, completed=trainer.global_step)
        self._console.print(
            f"epoch {row['epoch']:>{width}}/{trainer.max_epochs}  "
            f"train loss {row['train_loss']:.4f}  test loss {row['test_loss']:.4f}  "
            f"test accuracy {row['test_accuracy']:.2%}  {row['images_per_second']:.0f} images/s",
            highlight=False,
            soft_wrap=True,
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._progress.stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._progress.stop()
        if isinstance(exception, KeyboardInterrupt | SystemExit):
            self._console.print(
                f"stopped after step {trainer.global_step} of {self._steps}; --resume continues"
            )

    def _epoch(self, trainer: L.Trainer) -> str:
        return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
