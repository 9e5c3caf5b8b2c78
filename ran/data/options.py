"""How a data set is read: the settings of a training that concern its data alone."""

from dataclasses import dataclass, fields

from ..cores import usable_cores
from ..training.processes import find_processes
from ..training.settings import TrainingSettings

#: More readers than this for one process help little, and each holds the libraries once more.
MOST_WORKERS = 8


@dataclass(frozen=True)
class DataOptions:
    """Those of ``ran.training.settings.TrainingSettings`` that say how a data set is read."""

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
        """Processes that read images ahead for each process that trains."""
        if self.workers is not None:
            return self.workers
        share = usable_cores() // find_processes().local_count
        return min(MOST_WORKERS, max(0, share - 1))
