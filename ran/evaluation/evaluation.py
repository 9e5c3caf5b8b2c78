"""How good a network is on a data set: what ``ran eval`` does."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from ..checks import require_image_size
from ..data import Batch, ImageData, load_data
from ..devices import choose_device
from ..errors import UserError
from ..files import require_path
from ..pictures.plots import plot_confusion, require_picture
from ..text import plural
from ..weights.inference import class_probabilities, require_finite
from ..weights.network_card import NetworkCard, load_network
from .scores import Evaluation

#: Test-time augmentations: the mean of the probabilities of an image and of its changed copies.
AUGMENTATIONS = ("none", "flip")


def evaluate(
    checkpoint: nn.Module | str | Path,
    data: str | ImageData,
    *,
    image_size: int | None = None,
    tta: str = "none",
    confusion: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    batch_size: int = 64,
    skip_unreadable: bool = False,
    test_split: str = "validation",
    num_classes: int | None = None,
    progress: bool = False,
) -> Evaluation:
    """Classifies the test images of a data set and counts what is right.

    Args:
        checkpoint: a folder or file, or a network in memory, which stays as it is; as for
            ``ran.weights.network_card.load_network``.
        data: a name that ``ran.data.load_data`` takes, or what it gave. Its classes are some or
            all of the network's, by name. Of a name only the test part is read, and its images are
            resized and cropped as those that the network was trained on.
        image_size: side in pixels of what the network sees; that of its training if None.
        tta: "none", or "flip" for the mean of the probabilities of an image and its mirror image.
        confusion: picture of the confusion matrix to write; its suffix says the format.
        overwrite: replace that picture if it is there.
        device: as for ``ran.devices.choose_device``.
        batch_size: images computed at once.
        skip_unreadable: leave images that cannot be read out and count them, where ``data`` is a
            name; without, the first one ends it. Of a stream's images timm leaves them out.
        test_split: of timm's readers, where ``data`` is a name: the part to test on.
        num_classes: of timm's readers, where the set does not say it; the classes are then called
            0, 1 and so on, as in a training with that setting.
        progress: draw a bar on a terminal's standard error.

    Raises:
        UserError: an argument is out of its range, the data are missing, damaged or of other
            classes or channels, or the picture cannot be written.
    """
    if tta not in AUGMENTATIONS:
        raise UserError(f"tta: expected one of {', '.join(AUGMENTATIONS)}, got {tta!r}")
    if image_size is not None:
        require_image_size(image_size)
    for name, value in (("batch_size", batch_size), ("num_classes", num_classes)):
        if value is not None and value < 1:
            raise UserError(f"{name}: expected a positive integer, got {value}")
    if confusion is not None:
        require_picture(require_path("confusion", confusion), overwrite=overwrite)
    chosen = choose_device(device)
    network, card = load_network(checkpoint)
    size = card.preprocessing.image_size if image_size is None else image_size
    least: int = getattr(network, "minimum_size", 1)
    if size < least:
        raise UserError(f"image size {size}: expected at least {least} for {card.model}")
    loaded = data
    if isinstance(loaded, str):
        from ..data.options import DataOptions  # here as in ran.data

        loaded = load_data(
            loaded,
            size,
            options=DataOptions(
                skip_unreadable=skip_unreadable, test_split=test_split, num_classes=num_classes
            ),
            crop_fraction=card.preprocessing.crop_fraction,
            test_only=True,
        )
    if image_size not in (None, loaded.preprocessing.image_size):
        raise UserError(
            f"image size {image_size}: expected that of the data's images, "
            f"{loaded.preprocessing.image_size}"
        )
    numbers = _class_numbers(loaded, card)
    _require_channels(loaded, card)
    network.to(chosen, memory_format=torch.channels_last)  # type: ignore[call-overload]

    result = _count(
        network,
        card,
        track(
            loaded.test_loader(batch_size),
            f"{card.model} on {loaded.name}",
            console=Console(stderr=True),
            disable=not progress or not Console(stderr=True).is_terminal,
            transient=True,
        ),
        numbers,
        chosen,
        mirrored=tta == "flip",
    )
    evaluation = Evaluation(
        checkpoint=card.model if isinstance(checkpoint, nn.Module) else str(checkpoint),
        model=card.model,
        data=loaded.name,
        image_size=loaded.preprocessing.image_size,
        tta=tta,
        class_names=card.class_names,
        unreadable=loaded.unreadable.count_tested(),
        **result,
    )
    if confusion is not None:
        draw_confusion(evaluation, Path(confusion))
    return evaluation


def draw_confusion(evaluation: Evaluation, path: Path) -> None:
    """Writes the picture of the confusion matrix, in place of one that is there.

    Classes without images and that no image was taken for are left out.
    """
    matrix = evaluation.confusion
    there = np.flatnonzero(matrix.sum(0) + matrix.sum(1))
    plot_confusion(
        path,
        matrix[np.ix_(there, there)],
        [evaluation.class_names[number] for number in there],
        evaluation.confusions(),
        title=f"{evaluation.model} on {evaluation.data}: {evaluation.top1:.2%} of "
        f"{plural(evaluation.images, 'image')} right",
    )


def _class_numbers(data: ImageData, card: NetworkCard) -> Tensor:
    """The network's class number for each of the data's."""
    ours = {name: number for number, name in enumerate(card.class_names)}
    unknown = [name for name in data.class_names if name not in ours]
    if unknown:
        raise UserError(
            f"{data.name}: expected classes of the network ({_some(card.class_names)}), "
            f"{len(unknown)} of {len(data.class_names)} are others ({_some(unknown)})"
        )
    return torch.tensor([ours[name] for name in data.class_names])


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (", …" if len(listed) > 3 else "")


def _require_channels(data: ImageData, card: NetworkCard) -> None:
    ours, theirs = card.preprocessing.channels, data.preprocessing.channels
    # Gray images are also RGB images of equal channels; to take the colours away is a choice.
    if ours != theirs and (theirs, ours) != (1, 3):
        raise UserError(
            f"{data.name}: expected images of {plural(ours, 'channel')}, as {card.model} was "
            f"trained on, got {theirs}"
        )


@torch.no_grad()
def _count(
    network: nn.Module,
    card: NetworkCard,
    batches: Iterable[Batch],
    numbers: Tensor,
    device: torch.device,
    *,
    mirrored: bool,
) -> dict[str, Any]:
    count = len(card.class_names)
    confusion = MulticlassConfusionMatrix(count)
    top5 = MulticlassAccuracy(count, top_k=min(5, count), average="micro")
    start = time.perf_counter()
    for images, labels in _readable(batches):
        if not len(labels):
            continue
        images = images.to(device).expand(-1, card.preprocessing.channels, -1, -1)
        labels = numbers[labels.cpu()]
        probabilities = class_probabilities(network, card.preprocessing, images)
        if mirrored:
            mirror = class_probabilities(network, card.preprocessing, images.flip(3))
            probabilities = (probabilities + mirror) / 2
        require_finite(probabilities, card)
        confusion.update(probabilities, labels)
        top5.update(probabilities, labels)
    seconds = time.perf_counter() - start
    if not confusion.update_called:
        raise UserError("data: expected test images that can be read, found none")
    matrix = confusion.compute().numpy().astype(np.int64)
    return {
        "confusion": matrix,
        "top1": float(matrix.trace() / matrix.sum()),
        "top5": float(top5.compute()),
        "seconds": seconds,
    }


def _readable(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches; a process that reads images puts its traceback before the message."""
    try:
        yield from batches
    except UserError as error:
        raise UserError(str(error).strip().rpartition("UserError: ")[2]) from None
