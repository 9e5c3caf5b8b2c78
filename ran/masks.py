"""What the attention modules of a network look at, drawn over images."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoints import NetworkCard, load_network
from .data import ImageData, Preprocessing, read_image
from .devices import choose_device
from .errors import UserError
from .plots import plot_masks
from .prediction import class_probabilities

#: Rows of the picture of test images.
TEST_IMAGES = 6


def mean_masks(
    network: nn.Module, preprocessing: Preprocessing, images: Tensor
) -> dict[str, Tensor]:
    """The masks of each attention module, averaged over channels.

    Args:
        network: one with ``attention_masks``.
        preprocessing: the network's.
        images: (N, C, image_size, image_size) uint8, on the network's device.

    Returns:
        (N, h, w) float32 on the CPU by module name, each at the module's own size.
    """
    masks = network.attention_masks(preprocessing.normalize(images))  # type: ignore[operator]
    return {name: mask.float().mean(1).cpu() for name, mask in masks.items()}


def draw_masks(
    checkpoint: str | Path,
    images: Sequence[str | Path],
    output: str | Path,
    *,
    device: str = "auto",
) -> None:
    """Draws image files, a row each, with the mask of each attention module laid over them.

    Args:
        checkpoint: as for ``ran.checkpoints.load_network``.
        images: paths of image files.
        output: picture to write; its suffix says the format, such as .png, .pdf or .svg.
        device: as for ``ran.devices.choose_device``.

    Raises:
        UserError: a file is missing or unreadable, the network has no attention modules, or
            ``output`` exists or cannot be written. Nothing is written then.
    """
    output = Path(output)
    if output.exists():
        raise UserError(f"{output}: expected a new file, it exists")
    if not output.parent.is_dir():
        raise UserError(f"{output}: expected a folder to write in, {output.parent} is none")
    chosen = choose_device(device)
    network, card = load_network(checkpoint)
    if not hasattr(network, "attention_masks"):
        raise UserError(f"{checkpoint}: expected a network with masks, {card.model} has none")
    preprocessing = card.preprocessing
    batch = torch.stack(
        [preprocessing.resize(read_image(path, preprocessing.channels)) for path in images]
    )
    captions = [Path(path).name for path in images]
    _draw(network.to(chosen), card, batch.to(chosen), captions, output)


def draw_test_masks(network: nn.Module, card: NetworkCard, data: ImageData, output: Path) -> None:
    """Draws the first test image of each of the first classes, with label and prediction.

    Does nothing for a network without ``attention_masks``.
    """
    if not hasattr(network, "attention_masks"):
        return
    images, labels = _first_of_each_class(data)
    captions = [f"true {data.class_names[label]}" for label in labels]
    _draw(network, card, images, captions, output)


def _draw(
    network: nn.Module, card: NetworkCard, images: Tensor, captions: list[str], output: Path
) -> None:
    probabilities, classes = class_probabilities(network, card.preprocessing, images).max(1)
    labelled = [
        f"{caption}\npredicted {card.class_names[number]} ({probability:.0%})"
        for caption, number, probability in zip(
            captions, classes.tolist(), probabilities.tolist(), strict=True
        )
    ]
    masks = mean_masks(network, card.preprocessing, images)
    plot_masks(output, images.cpu(), labelled, masks, title=card.model)


def _first_of_each_class(data: ImageData) -> tuple[Tensor, list[int]]:
    """The first test image of each of the first TEST_IMAGES classes."""
    found: dict[int, Tensor] = {}
    wanted = min(TEST_IMAGES, len(data.class_names))
    for images, labels in data.test_loader(batch_size=64):
        for image, label in zip(images, labels.tolist(), strict=True):
            if label < wanted:
                found.setdefault(label, image)
        if len(found) == wanted:
            break
    order = sorted(found)
    return torch.stack([found[label] for label in order]), order
