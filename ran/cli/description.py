"""What this installation is, and what a checkpoint holds: ``ran info``."""

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

from ran_kernels.__main__ import report as kernel_report

from ..errors import UserError
from ..models.profile import count_multiply_adds, count_parameters
from ..pictures.views import has_attention
from ..text import plural
from ..weights.network_card import load_network

#: The packages that decide what ``ran`` computes and writes; those of ``ran_kernels`` are its own.
PACKAGES = (
    *("torchvision", "timm", "lightning", "torchmetrics", "safetensors", "scikit-learn"),
    *("matplotlib", "pillow", "numpy", "onnx", "onnxscript", "onnxruntime"),
)
#: Class names printed of each end of a long list.
NAMES = 6


def installation() -> Iterator[str]:
    """Lines: what ``python -m ran_kernels`` prints, and the versions of what ``ran`` uses."""
    yield from kernel_report()
    yield "packages of ran"
    for name in PACKAGES:
        try:
            yield f"  {name:<16}{importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"  {name:<16}not installed"


def describe(checkpoint: str | Path) -> dict[str, str]:
    """What a checkpoint is, in words, by what they are about.

    Args:
        checkpoint: as for ``ran.weights.network_card.load_network``.

    Raises:
        UserError: it is missing, damaged or of another kind.
    """
    network, card = load_network(checkpoint)
    preprocessing = card.preprocessing
    channels, size = preprocessing.channels, preprocessing.image_size
    try:
        cost = f"{count_multiply_adds(network, (channels, size, size)):,}"
    except ValueError as error:  # an edited card may say a size that the network cannot take
        raise UserError(f"{checkpoint}: {error}") from None
    pairs = {
        "model": card.model,
        "options": ", ".join(f"{key}={value}" for key, value in card.options.items()) or "none",
        "classes": f"{len(card.class_names)}: {_listed(card.class_names)}",
        "input": f"{plural(channels, 'channel')}, {size}×{size} pixels: "
        f"resized to {round(size / preprocessing.crop_fraction)} on the shorter side, the middle "
        "cropped",
        "mean": ", ".join(f"{value:g}" for value in preprocessing.mean),
        "std": ", ".join(f"{value:g}" for value in preprocessing.std),
        "parameters": f"{count_parameters(network):,}",
        "multiply-adds": f"{cost} for one such image",
    }
    if has_attention(network):
        pairs["masks"] = "can be drawn by ran masks"
    return {"checkpoint": str(checkpoint), **pairs}


def _listed(names: tuple[str, ...]) -> str:
    if len(names) <= 2 * NAMES:
        return ", ".join(names)
    return ", ".join([*names[:NAMES], "…", *names[-NAMES:]])
