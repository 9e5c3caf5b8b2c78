"""The table of a training's metrics."""

import csv
import time
from pathlib import Path
from typing import Any, cast

import lightning as L
from torch.optim import Optimizer

from ..files import replacing
from .classifier import ImageClassifier

COLUMNS = (
    "epoch",
    "step",
    "train_loss",
    "train_accuracy",
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

    ``step`` counts the optimizer's; ``learning_rate`` is the epoch's last; ``images_per_second``
    counts training alone; ``seconds`` is the time spent since the start, over all parts of a
    training that was resumed.

    Attributes:
        rows: one for each finished epoch.
        speed: images a second in this epoch so far, on all devices.
    """

    def __init__(self, path: Path) -> None:
        self.rows: list[Row] = []
        self.speed = 0.0
        self._path = path
        self._start = time.perf_counter()
        self._epoch_start = 0.0
        self._images = 0
        self._learning_rate = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.perf_counter() - self._seconds_before
        self._begin_epoch()  # which a training resumed in the middle of one does not

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin_epoch()

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
        self.speed = self._images / (time.perf_counter() - self._epoch_start)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = trainer.callback_metrics
        loss, accuracy = cast(ImageClassifier, pl_module).train_means(all_processes=True)
        self.rows.append(
            {
                "epoch": trainer.current_epoch + 1,
                "step": trainer.global_step,
                "train_loss": round(loss, 6),
                "train_accuracy": round(accuracy, 6),
                "learning_rate": round(self._learning_rate, 8),
                "test_loss": round(float(metrics["test_loss"]), 6),
                "test_accuracy": round(float(metrics["test_accuracy"]), 6),
                "images_per_second": round(self.speed, 1),
                "seconds": round(time.perf_counter() - self._start, 2),
            }
        )
        if trainer.is_global_zero:
            self._write()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": time.perf_counter() - self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
        self._seconds_before = state_dict["seconds"]

    _seconds_before = 0.0

    def _begin_epoch(self) -> None:
        self._epoch_start = time.perf_counter()
        self._images = 0

    def _write(self) -> None:
        with replacing(self._path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)
