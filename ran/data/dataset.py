"""What training needs to know of a data set, and its batches."""

from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import UserError
from ..text import plural
from .augment import Augmentation
from .images import Preprocessing
from .order import TestOrder, TrainingOrder

#: (N, C, H, W) uint8 images and (N,) int64 class numbers.
Batch = tuple[Tensor, Tensor]


class Split(Sized, Protocol):
    """One part of a data set: every image has its final size, in uint8."""

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The images and classes at ``indices``, as one batch."""


@dataclass(frozen=True)
class InMemory:
    """Images (N, C, H, W) uint8 and their classes (N,) int64, held as tensors on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        chosen = torch.as_tensor(indices, device=self.labels.device)
        return self.images[chosen], self.labels[chosen]

    def to(self, device: torch.device) -> "InMemory":
        return InMemory(self.images.to(device), self.labels.to(device))


@dataclass
class Unreadable:
    """Images that could not be read and were left out.

    Attributes:
        found: how many before the training, all of them looked at.
        first: what was wrong with the first of them.
        tested: how many of them are test images.
        marks, test_marks: one a file, in memory that worker processes share: not 0 where one was
            found to be unreadable since.
    """

    found: int = 0
    first: str = ""
    tested: int = 0
    marks: list[Tensor] = field(default_factory=list)
    test_marks: list[Tensor] = field(default_factory=list)

    def new_marks(self, files: int, *, test: bool) -> Tensor:
        """Marks for ``files`` more."""
        marks = torch.zeros(files, dtype=torch.uint8).share_memory_()
        (self.test_marks if test else self.marks).append(marks)
        return marks

    def count(self) -> int:
        """How many are known of by now."""
        return self.found + _marked(self.marks) + _marked(self.test_marks)

    def count_tested(self) -> int:
        """How many test images are known of by now."""
        return self.tested + _marked(self.test_marks)


def _marked(marks: Iterable[Tensor]) -> int:
    return sum(int(each.count_nonzero()) for each in marks)


@dataclass(frozen=True)
class ImageData:
    """A data set with its training and test part.

    Attributes:
        name: as in the option ``--data``.
        class_names: by class number.
        preprocessing: what makes the images what a network sees.
        train, test: the two parts.
        augmentation: applied to training batches on the device.
        workers: processes that read images ahead; 0 where they are in memory already.
        unreadable: what was left out.
    """

    name: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    train: Split
    test: Split
    augmentation: Augmentation
    workers: int
    unreadable: Unreadable = field(default_factory=Unreadable)

    def on(self, device: torch.device) -> "ImageData":
        """The same data; what is in memory is on ``device``, so no step waits for a copy."""
        parts = {
            name: part.to(device)
            for name, part in (("train", self.train), ("test", self.test))
            if isinstance(part, InMemory)
        }
        return replace(self, **parts)  # type: ignore[arg-type]

    def train_loader(
        self,
        batch_size: int,
        *,
        parts: int = 1,
        seed: int = 0,
        rank: int = 0,
        processes: int = 1,
        done: Callable[[], int] | None = None,
    ) -> "DataLoader[Batch]":
        """Shuffled batches of one process; the arguments are ``ran.data.order.TrainingOrder``'s.

        Raises UserError where ``batch_size`` cannot be shared.
        """
        try:
            order = TrainingOrder(
                len(self.train),
                batch_size,
                parts=parts,
                seed=seed,
                rank=rank,
                processes=processes,
                done=done,
            )
        except ValueError as error:
            raise UserError(f"batch_size: expected {error}") from None
        if hasattr(self.train, "stream"):
            return self.train.stream(order.share, len(order), self.workers)
        return self._loader(self.train, order)

    def test_loader(
        self, batch_size: int, *, rank: int = 0, processes: int = 1
    ) -> "DataLoader[Batch]":
        """Every test image, in order; a process' share of them, where there are several."""
        if hasattr(self.test, "stream"):
            return self.test.stream(batch_size, None, self.workers)
        if len(self.test) < processes:
            expected = plural(processes, "test image")
            raise UserError(f"{self.name}: expected {expected}, has {len(self.test)}")
        order = TestOrder(len(self.test), batch_size, rank=rank, processes=processes)
        return self._loader(self.test, order)

    def _loader(self, split: Split, order: Iterable[list[int]]) -> "DataLoader[Batch]":
        workers = 0 if isinstance(split, InMemory) else self.workers
        return DataLoader(
            split,  # type: ignore[arg-type]  # a Dataset by its methods, not by its base class
            batch_sampler=order,  # likewise a Sampler
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available() and not isinstance(split, InMemory),
            collate_fn=_already_a_batch,
        )


def _already_a_batch(batch: Any) -> Any:
    return batch
