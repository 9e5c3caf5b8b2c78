"""Image files as a loaded network takes them, and the probabilities it gives them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data.decoding import read_image
from ..data.images import Preprocessing
from ..errors import UserError
from .network_card import NetworkCard


@torch.no_grad()
def class_probabilities(network: nn.Module, preprocessing: Preprocessing, images: Tensor) -> Tensor:
    """(N, C, image_size, image_size) uint8 to probabilities (N, classes), float32 on the CPU.

    ``network`` is in evaluation mode and on the device of ``images``.
    """
    dtype = next(network.parameters()).dtype
    logits = network(preprocessing.normalize(images).to(dtype))
    return logits.float().softmax(1).cpu()


def require_finite(probabilities: Tensor, card: NetworkCard) -> None:
    """Raises UserError where a network's weights give no probabilities."""
    if not probabilities.isfinite().all():
        raise UserError(f"{card.model}: expected finite outputs, its weights give NaN or more")


def load_images(paths: Sequence[str | Path], card: NetworkCard) -> Tensor:
    """Image files as ``card``'s network sees them: (N, C, image_size, image_size) uint8.

    Raises:
        UserError: a file is missing or unreadable, or the network's input is neither grayscale
            nor RGB.
    """
    require_image_channels(card)
    return torch.stack([load_image(path, card) for path in paths])


def load_image(path: str | Path, card: NetworkCard) -> Tensor:
    """An image file as ``card``'s network sees it: (C, image_size, image_size) uint8.

    Raises UserError where it is missing or unreadable.
    """
    return card.preprocessing.resize(read_image(path, card.preprocessing.channels))


def require_image_channels(card: NetworkCard) -> None:
    """Raises UserError where image files have not the channels that the network takes."""
    channels = card.preprocessing.channels
    if channels not in (1, 3):
        raise UserError(
            f"{card.model}: expected a network of 1 or 3 input channels to show image files to, "
            f"it has {channels}"
        )
