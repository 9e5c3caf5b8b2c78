"""A training with everything that could keep a state of its own, and what stops it."""

import os
import signal
from typing import Any

import lightning as L
import torch

from ran.training.checkpoints import PARTS
from ran.training.run import TrainingResult
from tests.tiny import TINY, TINY_OPTIONS

#: 5 epochs of 4 steps of 2 batches each.
EVERYTHING: dict[str, Any] = {
    **{name: value for name, value in TINY.items() if name != "data"},
    "epochs": 5,
    "batch_size": 8,
    "accumulate": 2,
    "augmentation": "shift-flip",
    "cutout": 4,
    "mixup": 0.5,
    "cutmix": 0.5,
    "mix_until": 4,
    "clip_norm": 1.0,
    "ema": 0.9,
    "checkpoint_steps": 1,
    "model_options": {**TINY_OPTIONS, "drop_rate": 0.2},
}
#: Of the rows, all that does not depend on the clock.
SAME = ("epoch", "step", "train_loss", "train_accuracy", "learning_rate", "test_loss")


def assert_same_end(found: TrainingResult, expected: TrainingResult) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        states = [
            torch.load(result.folder / name, weights_only=True)["state_dict"]
            for result in (found, expected)
        ]
        assert states[0].keys() == states[1].keys()
        for key, value in states[0].items():
            assert torch.equal(value, states[1][key]), key
    weights = [(result.folder / "model.safetensors").read_bytes() for result in (found, expected)]
    assert weights[0] == weights[1]
    assert [[row[name] for name in SAME] for row in found.rows] == [
        [row[name] for name in SAME] for row in expected.rows
    ]


class StopAfterStep(L.Callback):
    """Stops as a signal from outside does, after a step, or in the test of an epoch."""

    def __init__(self, step: int, number: int = signal.SIGTERM, *, in_test: bool = False) -> None:
        self.step, self.number, self.in_test = step, number, in_test

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.in_test:
            os.kill(os.getpid(), self.number)

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and self.in_test:
            os.kill(os.getpid(), self.number)


def checkpoint_of(step: int) -> dict[str, Any]:
    """The parts that a training's checkpoint has, and 40 kB that say the step too."""
    return {**dict.fromkeys(PARTS), "step": step, "weights": torch.full((10_000,), float(step))}
