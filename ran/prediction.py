"""Classes of image files: what ``ran predict`` does."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoints import load_network
from .data.images import Preprocessing, read_image
from .devices import choose_device
from .errors import UserError


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image.

    Attributes:
        path: of the image.
        classes: names and probabilities (0 to 1), most probable first.
    """

    path: Path
    classes: tuple[tuple[str, float], ...]


@torch.no_grad()
def class_probabilities(network: nn.Module, preprocessing: Preprocessing, images: Tensor) -> Tensor:
    """(N, C, image_size, image_size) uint8 to probabilities (N, classes), float32 on the CPU.

    ``network`` is in evaluation mode and on the device of ``images``.
    """
    logits = network(preprocessing.normalize(images))
    return logits.float().softmax(1).cpu()


def predict(
    checkpoint: str | Path,
    images: Sequence[str | Path],
    *,
    topk: int = 5,
    device: str = "auto",
    batch_size: int = 64,
) -> list[Prediction]:
    """The ``topk`` most probable classes (or all, if there are fewer) of each image file.

    Args:
        checkpoint: as for ``ran.checkpoints.load_network``.
        images: paths of image files.
        topk: how many classes to give.
        device: as for ``ran.devices.choose_device``.
        batch_size: images computed at once.

    Raises:
        UserError: an argument is out of its range, or a file is missing or unreadable.
    """
    for name, value in (("topk", topk), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name}: expected a positive integer, got {value}")
    chosen = choose_device(device)
    network, card = load_network(checkpoint)
    network.to(chosen)
    preprocessing = card.preprocessing

    predictions = []
    for start in range(0, len(images), batch_size):
        paths = [Path(path) for path in images[start : start + batch_size]]
        batch = torch.stack(
            [preprocessing.resize(read_image(path, preprocessing.channels)) for path in paths]
        )
        probabilities = class_probabilities(network, preprocessing, batch.to(chosen))
        top = probabilities.topk(min(topk, len(card.class_names)))
        for path, values, numbers in zip(
            paths, top.values.tolist(), top.indices.tolist(), strict=True
        ):
            names = (card.class_names[number] for number in numbers)
            predictions.append(Prediction(path, tuple(zip(names, values, strict=True))))
    return predictions
