"""How a data set is read: the settings of a training that concern its data alone."""

from dataclasses import dataclass, fields

from ..cores import usable_cores
from ..settings import TrainingSettings

#: More readers than this for one process help little, and each holds the libraries once more.
MOST_WORKERS = 8


@dataclass(frozen=True)
class DataOptions:
    """Those fields of ``ran.settings.TrainingSettings`` that say how a data set is read."""

    download: bool = False
    skip_unreadable: bool = False
    workers: int | None = None
    cutout: int = 0
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    color_jitter: float = 0.4
    auto_augment: str | None = None
    train_split: str = "train"
    test_split: str = "validation"
    num_classes: int | None = None
    seed: int = 0

    @classmethod
    def of(cls, settings: TrainingSettings) -> "DataOptions":
        """Those of a training."""
        given = {entry.name: getattr(settings, entry.name) for entry in fields(cls)}
        return cls(**{**given, "scale": tuple(settings.scale), "ratio": tuple(settings.ratio)})

    def worker_count(self) -> int:
        """Processes that read images ahead."""
        return min(MOST_WORKERS, usable_cores() - 1) if self.workers is None else self.workers
