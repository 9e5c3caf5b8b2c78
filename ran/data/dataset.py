"""What training needs to know of a data set, and its batches."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .augment import Augmentation
from .images import Preprocessing

#: (N, C, H, W) uint8 images and (N,) int64 class numbers.
Batch = tuple[Tensor, Tensor]


class Split(Sized, Protocol):
    """One part of a data set: every image has its final size, in uint8."""

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The images and classes at ``indices``, as one batch."""


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
    """

    name: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    train: Split
    test: Split
    augmentation: Augmentation
    workers: int

    def train_loader(self, batch_size: int) -> "DataLoader[Batch]":
        """Shuffled batches. A last batch that would be smaller is left out: it would weigh as
        much as the others, and a batch of one image has no variance to normalise by."""
        return self._loader(
            self.train, batch_size, shuffle=True, drop_last=len(self.train) >= batch_size
        )

    def test_loader(self, batch_size: int) -> "DataLoader[Batch]":
        """Every test image, in order."""
        return self._loader(self.test, batch_size, shuffle=False, drop_last=False)

    def _loader(
        self, split: Split, batch_size: int, *, shuffle: bool, drop_last: bool
    ) -> "DataLoader[Batch]":
        return DataLoader(
            split,  # type: ignore[arg-type]  # a Dataset by its methods, not by its base class
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_already_a_batch,
        )


def _already_a_batch(batch: Any) -> Any:
    return batch
