"""The settings of a training."""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .errors import UserError


@dataclass(frozen=True)
class TrainingSettings:
    """What to train on what, and how. The defaults follow the papers' training where they can.

    Raises UserError for a value out of its range, naming it.
    """

    model: str
    """A name of ``ran.list_models()``."""
    data: str
    """``digits`` or ``folder:PATH``."""
    epochs: int = 100
    lr: float = 0.1
    """Learning rate at its peak."""
    batch_size: int = 64
    seed: int = 0
    output: Path | None = None
    """Folder to write; ``runs/MODEL-DATA`` if None."""
    overwrite: bool = False
    """Replace that folder if a training wrote it."""
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    """Processor cores that compute; None leaves it to PyTorch, which takes them all."""
    image_size: int | None = None
    """Side in pixels of the square that the network sees; the model's usual one if None."""
    augmentation: str = "auto"
    """A name in ``ran.data.AUGMENTATIONS``."""
    warmup_epochs: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    model_options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of ``ran.create_model``."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "threads", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}: expected a positive integer, got {value}")
        if not 0 < self.lr < float("inf"):
            raise UserError(f"lr: expected a positive number, got {self.lr}")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed: expected 0 to 2**32 - 1, got {self.seed}")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise UserError(
                f"warmup_epochs: expected 0 to epochs ({self.epochs}), got {self.warmup_epochs}"
            )
        if not 0 <= self.weight_decay < float("inf"):
            raise UserError(f"weight_decay: expected 0 or more, got {self.weight_decay}")
        for name in ("momentum", "label_smoothing"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise UserError(f"{name}: expected 0 or more and less than 1, got {value}")

        try:
            json.dumps(self.model_options)
        except (TypeError, ValueError) as error:
            raise UserError(f"model_options: expected what JSON can hold: {error}") from None

    @property
    def folder(self) -> Path:
        """Where the training writes."""
        return self.output or _default_folder(self.model, self.data)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "output": str(self.folder)}


def _default_folder(model: str, data: str) -> Path:
    kind, _, path = data.partition(":")
    name = Path(path).resolve().name if path else kind
    return Path("runs") / f"{model}-{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}"
