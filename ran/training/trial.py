"""Whether a network can be made and run as the settings say, tried before anything is written."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from ..errors import UserError
from ..weights.network_card import NetworkCard, build_network
from .settings import TrainingSettings


def usual_size(settings: TrainingSettings) -> int:
    """The side in pixels of the images that the model is usually given.

    Raises UserError for a model that there is not, or options that it does not take.
    """
    with torch.device("meta"):  # neither memory nor random numbers: only name and options
        network = build_network(settings.model, settings.model_options)
    return cast(dict[str, Any], network.pretrained_cfg)["input_size"][-1]


@contextmanager
def enough_memory(settings: TrainingSettings) -> Iterator[None]:
    """Raises UserError where something inside asks the system for more memory than it has."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = str(error)
        if not isinstance(error, MemoryError) and "allocate" not in words:
            raise
        size = f" at image size {settings.image_size}" if settings.image_size else ""
        raise UserError(
            f"model {settings.model}{size}: expected one that fits this machine's memory: "
            f"{' '.join(words.rpartition('DefaultCPUAllocator: ')[2].split())}"
        ) from None


def check_runs(network: nn.Module, card: NetworkCard, together: int) -> None:
    """Raises UserError unless ``together`` images give classes: too small ones, say."""
    size = card.preprocessing.image_size
    images = torch.zeros(min(2, together), card.preprocessing.channels, size, size)
    try:
        with torch.no_grad():
            # a copy: in training mode, which alone knows batch limits, running statistics change
            logits = copy.deepcopy(network).train()(images)
    except ValueError as error:
        at_once = "" if together > 1 else ", one image at once (batch_size over accumulate)"
        raise UserError(f"model {card.model} at image size {size}{at_once}: {error}") from None
    if getattr(logits, "shape", None) != (len(images), len(card.class_names)):
        raise UserError(f"model {card.model}: expected one value a class, options {card.options}")
