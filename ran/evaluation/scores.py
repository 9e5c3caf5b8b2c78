"""What an evaluation counted: the result of ``ran.evaluate``."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ClassScore:
    """One class in an evaluation; shares are 0 to 1, None where nothing was counted.

    Attributes:
        name: of the class.
        images: of this class in the data.
        accuracy: share of them that were classified right (recall).
        precision: share right of the images that were classified as this class.
        confused_with: the wrong class they were most often given, None where all were right.
    """

    name: str
    images: int
    accuracy: float | None
    precision: float | None
    confused_with: str | None


@dataclass(frozen=True)
class Evaluation:
    """What a network got right on the test images of a data set.

    Attributes:
        checkpoint, model, data: what was evaluated on what.
        image_size: side in pixels of what the network saw.
        tta: the test-time augmentation, a name of ``ran.evaluation.evaluation.AUGMENTATIONS``.
        class_names: by class number.
        confusion: (classes, classes) counts, the true class by row, the predicted one by column.
        top1, top5: share of images, 0 to 1, whose class was the most probable, or among the five
            most probable.
        seconds: from the first image's reading to the last one's count.
        unreadable: test images that were left out because they could not be read.
    """

    checkpoint: str
    model: str
    data: str
    image_size: int
    tta: str
    class_names: tuple[str, ...]
    confusion: np.ndarray
    top1: float
    top5: float
    seconds: float
    unreadable: int = 0

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def images_per_second(self) -> float:
        """With reading and preparing the images, which may take longer than the network."""
        return self.images / self.seconds

    def classes(self) -> list[ClassScore]:
        """By class number."""
        right = self.confusion.diagonal()
        wrong = self.confusion - np.diag(right)
        images, predicted = self.confusion.sum(1), self.confusion.sum(0)
        return [
            ClassScore(
                name=name,
                images=int(images[k]),
                accuracy=float(right[k] / images[k]) if images[k] else None,
                precision=float(right[k] / predicted[k]) if predicted[k] else None,
                confused_with=self.class_names[wrong[k].argmax()] if wrong[k].any() else None,
            )
            for k, name in enumerate(self.class_names)
        ]

    def confusions(self) -> list[tuple[str, str, int]]:
        """True class, predicted class and count of each pair that occurred, most frequent first."""
        wrong = self.confusion - np.diag(self.confusion.diagonal())
        pairs = [(int(wrong[pair]), *pair) for pair in zip(*np.nonzero(wrong), strict=True)]
        pairs.sort(key=lambda pair: (-pair[0], *pair[1:]))
        return [
            (self.class_names[true], self.class_names[predicted], count)
            for count, true, predicted in pairs
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "checkpoint": self.checkpoint,
            "model": self.model,
            "data": self.data,
            "image_size": self.image_size,
            "tta": self.tta,
            "images": self.images,
            "unreadable_images": self.unreadable,
            "top1": self.top1,
            "top5": self.top5,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "classes": [vars(score) for score in self.classes()],
            "confusions": [
                {"true": true, "predicted": predicted, "count": count}
                for true, predicted, count in self.confusions()
            ],
        }
