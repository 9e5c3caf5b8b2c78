"""The learning rate, step by step."""

import math
from bisect import bisect_right
from dataclasses import dataclass

from .settings import TrainingSettings


@dataclass
class Schedule:
    """Share of the peak learning rate at each step: up a line, then down a curve.

    A function for ``torch.optim.lr_scheduler.LambdaLR``.

    Attributes:
        kind: cosine or linear, which both end at 0; multistep; constant.
        steps: of the whole training.
        warmup: steps before the peak.
        milestones: steps from which on multistep multiplies by ``rate`` once more.
        rate: of multistep.
    """

    kind: str
    steps: int
    warmup: int = 0
    milestones: tuple[int, ...] = ()
    rate: float = 0.1

    def __call__(self, step: int) -> float:
        """The share at ``step``, counted from 0."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.kind == "multistep":
            return self.rate ** bisect_right(self.milestones, step)
        if self.kind == "constant":
            return 1.0
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return 1 - done if self.kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def make_schedule(settings: TrainingSettings, steps_per_epoch: int) -> Schedule:
    """The schedule that ``settings`` describe for epochs of ``steps_per_epoch`` steps."""

    def steps(time: float) -> int:
        return settings.steps(time, steps_per_epoch)

    return Schedule(
        kind=settings.schedule,
        steps=settings.iterations or steps(settings.epochs),
        warmup=steps(settings.warmup),
        milestones=tuple(steps(time) for time in settings.milestones),
        rate=settings.decay_rate,
    )
