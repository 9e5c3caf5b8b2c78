"""What a training saves and what prediction loads: a network with its classes and images."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..data.images import Preprocessing
from ..errors import UserError
from ..files import require_path
from .assembly import assemble, build_network, require_size
from .card import card_content, check_card
from .pretrained import save_pretrained
from .saved import read_saved

#: What a training calls the checkpoint that it keeps of an epoch.
KEPT = "epoch-{:04}.ckpt"
_KEPT = re.compile(r"epoch-(\d{4,})\.ckpt", re.ASCII)


@dataclass(frozen=True)
class NetworkCard:
    """How to rebuild a network and what to do to an image before it.

    Attributes:
        model: a name of ``ran.list_models()``.
        class_names: by class number; the network has one output for each.
        preprocessing: its number of channels is the network's ``in_chans``.
        options: further arguments of ``ran.create_model``.
    """

    model: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    options: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """The network, newly initialised. Raises UserError where name or options are wrong."""
        return build_network(self.model, self._options())

    def _options(self) -> dict[str, Any]:
        sizes = {"num_classes": len(self.class_names), "in_chans": self.preprocessing.channels}
        if clash := sorted(sizes.keys() & self.options.keys()):
            raise UserError(f"option {clash[0]}: expected none, the data decide it")
        return {**self.options, **sizes}

    def to_json(self) -> dict[str, Any]:
        return card_content(self.model, self._options(), self.class_names, self.preprocessing)

    @classmethod
    def from_json(cls, content: dict[str, Any], source: Path) -> "NetworkCard":
        """Raises UserError that names ``source``, where a field is missing or malformed."""
        check_card(content, source, also=("class_names", "preprocessing"))
        if content["class_names"] is None:
            raise UserError(f"{source}: a field is malformed: class_names is None")
        return cls(
            model=content["model"],
            class_names=tuple(content["class_names"]),
            preprocessing=Preprocessing.from_json(content["preprocessing"]),
            options=dict(content["options"]),
        )


def kept_epoch(path: Path) -> int | None:
    """The epoch of a checkpoint that a training kept; None where the name is another's."""
    found = _KEPT.fullmatch(path.name)
    return int(found[1]) if found else None


def kept_checkpoints(folder: Path) -> list[Path]:
    """Those in the folder of a training, in the order of their epochs."""
    found = [(kept_epoch(path), path) for path in folder.glob("epoch-*.ckpt")]
    return [path for epoch, path in sorted(found, key=lambda pair: pair[0] or 0) if epoch]


def save_network(network: nn.Module, card: NetworkCard, folder: str | Path) -> Path:
    """``ran.save_pretrained`` with what the card says of classes and images."""
    return save_pretrained(
        network, folder, class_names=card.class_names, preprocessing=card.preprocessing
    )


def load_network(path: str | Path) -> tuple[nn.Module, NetworkCard]:
    """What ``save_network`` or a training saved; the network in evaluation mode on the CPU.

    Args:
        path: the folder, the ``.safetensors`` file with its JSON beside it, or a ``.ckpt`` file
            of a training. Nothing in any of them is executed.

    Raises:
        UserError: a file is missing, damaged or of another kind, or the weights are another
            network's; the message names the first tensors that differ.
    """
    saved = read_saved(require_path("checkpoint", path))
    card = NetworkCard.from_json(saved.content, saved.card)
    network = assemble(card.build, saved.tensors, source=saved.weights, name=card.model)
    require_size(network, card.preprocessing, saved.card)
    return network, card
