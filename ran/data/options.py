"""How a data set is read."""

from dataclasses import dataclass

from ..processes import find_processes, usable_cores

#: More readers than this for one process help little, and each holds the libraries once more.
MOST_WORKERS = 8


@dataclass(frozen=True)
class DataOptions:
    """How a data set is read; ``ran.training.settings.TrainingSettings`` explains each."""

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

    def worker_count(self) -> int:
        """Processes that read images ahead for each process that trains."""
        if self.workers is not None:
            return self.workers
        share = usable_cores() // find_processes().local_count
        return min(MOST_WORKERS, max(0, share - 1))
