"""Which images come in which batch, and the random numbers of each.

Both are functions of the seed and of how far the training is, and of nothing else: no generator's
state has to be saved for a training to go on exactly where it stopped, on any number of workers.
"""

import random
from collections.abc import Callable, Iterator

import numpy as np
import torch


def seed_of(*numbers: int) -> int:
    """One seed below 2**32 from several numbers, with no relation between near ones."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_all(seed: int) -> None:
    """Seeds Python's, NumPy's and PyTorch's random numbers (on every device)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class Draw(list[int]):
    """The images of a batch by their number, and a seed for what happens to them by chance."""

    def __init__(self, indices: list[int], seed: int) -> None:
        super().__init__(indices)
        self.seed = seed

    def __reduce__(self) -> tuple[type, tuple[list[int], int]]:
        return type(self), (list(self), self.seed)  # how it reaches a worker process


class TrainingOrder:
    """Batches of an epoch, shuffled anew in each: a batch sampler of one process.

    Args:
        images: how many there are.
        batch_size: images that all processes together need for a step. The last images of an
            epoch, fewer than that, are left out: they would weigh as much as the others, and a
            batch of one image has no variance to normalise by.
        parts: batches that a process makes of its share of a step.
        seed: of the training.
        rank, processes: this process among all.
        done: gives the number of batches that this process has trained on since the training
            began; None counts the epochs asked for.

    Raises:
        ValueError: ``batch_size`` cannot be shared among the processes and parts.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        *,
        parts: int = 1,
        seed: int = 0,
        rank: int = 0,
        processes: int = 1,
        done: Callable[[], int] | None = None,
    ) -> None:
        step = min(batch_size, images)
        shares = processes * parts
        if step < shares or (step == batch_size and step % shares):
            raise ValueError(f"a multiple of {shares} (processes × parts), got {step}")
        self.share = step // shares
        self._images, self._step, self._parts = images, self.share * shares, parts
        self._seed, self._rank, self._processes = seed, rank, processes
        self._done = done
        self._epochs = 0

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._images // self._step * self._parts

    def __iter__(self) -> Iterator[Draw]:
        if self._done:
            epoch, first = divmod(self._done(), len(self))
        else:
            epoch, first = self._epochs, 0
        self._epochs = epoch + 1
        shuffle = torch.Generator().manual_seed(seed_of(self._seed, epoch))
        order = torch.randperm(self._images, generator=shuffle).tolist()
        for number in range(first, len(self)):
            start = (number * self._processes + self._rank) * self.share
            seed = seed_of(self._seed, epoch * len(self) + number, self._rank)
            yield Draw(order[start : start + self.share], seed)


class TestOrder:
    """Every image once, in order, shared among processes in equally many batches each.

    Equally many, because processes that train together also walk through the test together.
    """

    __test__ = False  # no test of pytest's

    def __init__(self, images: int, batch_size: int, *, rank: int = 0, processes: int = 1) -> None:
        most = -(-images // processes)
        # in no process more batches than images: an empty batch has no mean
        batches = min(-(-most // batch_size), images // processes)
        mine = np.arange(rank, images, processes)
        if processes == 1:
            self._batches = [
                mine[start : start + batch_size] for start in range(0, images, batch_size)
            ]
        else:
            self._batches = np.array_split(mine, batches)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self._batches)
