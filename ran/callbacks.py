"""What a training tells its user: a table of metrics and a progress bar."""

import csv
import time
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch.optim import Optimizer

from .files import replacing

COLUMNS = (
    "epoch",
    "train_loss",
    "learning_rate",
    "test_loss",
    "test_accuracy",
    "images_per_second",
    "seconds",
)
#: One row of metrics.csv; ``epoch`` counts from 1.
Row = dict[str, float]


class MetricsTable(L.Callback):
    """Keeps one row an epoch and writes them all to a CSV file after each.

    ``learning_rate`` is the epoch's last; ``images_per_second`` counts training alone;
    ``seconds`` is the time since the start.

    Attributes:
        rows: one for each finished epoch.
    """

    def __init__(self, path: Path) -> None:
        self.rows: list[Row] = []
        self._path = path
        self._start = time.perf_counter()
        self._epoch_start = 0.0
        self._train_seconds = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_start = time.perf_counter()
        self._images = 0

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        # read here: by the end of the batch the schedule has moved on
        self._learning_rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._images += len(batch[1]) * trainer.world_size
        self._train_seconds = time.perf_counter() - self._epoch_start

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = trainer.callback_metrics
        self.rows.append(
            {
                "epoch": trainer.current_epoch + 1,
                "train_loss": round(float(metrics["train_loss"]), 6),
                "learning_rate": round(self._learning_rate, 8),
                "test_loss": round(float(metrics["test_loss"]), 6),
                "test_accuracy": round(float(metrics["test_accuracy"]), 6),
                "images_per_second": round(self._images / self._train_seconds, 1),
                "seconds": round(time.perf_counter() - self._start, 2),
            }
        )
        if trainer.is_global_zero:
            self._write()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def _write(self) -> None:
        with replacing(self._path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)


class ProgressLine(L.Callback):
    """A live bar over all epochs in a terminal; one line an epoch where output is kept.

    Args:
        console: where to.
        table: must come before this callback, and gives it the metrics.
    """

    def __init__(self, console: Console, table: MetricsTable) -> None:
        self._console = console
        self._table = table
        self._task = TaskID(0)
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
        total = trainer.estimated_stepping_batches
        self._task = self._progress.add_task("training", total=total, metrics="")
        self._progress.start()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self._progress.update(self._task, advance=1, description=epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        row = self._table.rows[-1]
        metrics = (
            f"train loss {row['train_loss']:.4f}  test loss {row['test_loss']:.4f}  "
            f"test accuracy {row['test_accuracy']:.2%}  {row['images_per_second']:.0f} images/s"
        )
        self._progress.update(self._task, metrics=metrics)
        if not self._console.is_terminal:
            width = len(str(trainer.max_epochs))
            self._console.print(
                f"epoch {row['epoch']:>{width}}/{trainer.max_epochs}  {metrics}",
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
            done = len(self._table.rows)
            self._console.print(f"stopped after {done} of {trainer.max_epochs} epochs")
