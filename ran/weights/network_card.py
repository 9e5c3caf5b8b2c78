"""What a training saves and what prediction loads: a network with its classes and images."""

import copy
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.images import Preprocessing
from ..errors import DefaultsWarning, UserError
from ..files import require_path
from ..models.origin import Origin
from .assembly import assemble, build_network, require_size
from .card import card_content, card_options
from .pretrained import TOLD, save_pretrained
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


def load_network(source: nn.Module | str | Path) -> tuple[nn.Module, NetworkCard]:
    """What ``ran.save_pretrained`` or a training saved; the network in evaluation mode on the CPU.

    Without class names the classes are called 0, 1 and so on, and without preprocessing images are
    prepared as is usual for the network: a DefaultsWarning says so.

    Args:
        source: the folder, the ``.safetensors`` file with its JSON beside it, or a ``.ckpt`` file
            of a training; nothing in any of them is executed. Or a network in memory, of this
            package or of timm, of which the result is a copy; what it knows of classes and images
            is in its ``pretrained_cfg``, as ``ran.from_pretrained`` writes it.

    Raises:
        UserError: a file is missing, damaged or of another kind, or the weights are another
            network's; the message names the first tensors that differ. Or the network gives no
            classes.
    """
    if isinstance(source, nn.Module):
        return _copied(source)
    saved = read_saved(require_path("checkpoint", source))
    content, options = saved.content, card_options(saved.content, saved.card)
    network: Any = assemble(
        lambda: build_network(content["model"], options),
        saved.tensors,
        source=saved.weights,
        name=content["model"],
    )
    if options.get("features_only") or not network.num_classes:
        raise UserError(f"{saved.card}: expected a network with a classifier, this one has none")
    names, given = content.get("class_names"), content.get("preprocessing")
    card = NetworkCard(
        model=content["model"],
        class_names=_names(names, network.num_classes, saved.card),
        preprocessing=Preprocessing.from_json(given)
        if given
        else _usual_preprocessing(network, content["model"], saved.card),
        options=dict(content["options"]),
    )
    require_size(network, card.preprocessing, saved.card)
    return network, card


def _copied(model: nn.Module) -> tuple[nn.Module, NetworkCard]:
    network: Any = copy.deepcopy(getattr(model, "_orig_mod", model)).cpu().eval()
    cfg = getattr(network, "pretrained_cfg", None)
    if not isinstance(cfg, dict) or not getattr(network, "num_classes", 0):
        raise UserError(
            "model: expected a network of ran.create_model or timm with a classifier, got a "
            f"{type(network).__name__}"
        )
    origin = getattr(network, "origin", None)
    name = origin.name if isinstance(origin, Origin) else str(cfg.get("architecture", "network"))
    preprocessing = _usual_preprocessing(network, name, "model")
    dtype = next(network.parameters()).dtype
    size = preprocessing.image_size
    with torch.no_grad():  # which tells the classes of a head that was exchanged, too
        outputs = network(torch.zeros(1, preprocessing.channels, size, size, dtype=dtype))
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        raise UserError("model: expected outputs of shape (N, num_classes)")
    options = origin.options if isinstance(origin, Origin) else {}
    sizes = ("num_classes", "in_chans")
    return network, NetworkCard(
        model=name,
        class_names=_names(cfg.get("label_names"), outputs.shape[1], "model"),
        preprocessing=preprocessing,
        options={key: value for key, value in options.items() if key not in sizes},
    )


def _names(known: Sequence[str] | None, count: int, where: str | Path) -> tuple[str, ...]:
    if known is not None and len(known) == count:
        return tuple(known)
    _say(f"{where}: no class names are known, classes are called 0 to {count - 1}")
    return tuple(map(str, range(count)))


def _usual_preprocessing(network: Any, name: str, where: str | Path) -> Preprocessing:
    """What the network's ``pretrained_cfg`` says, which is that of its name if nothing else."""
    cfg = network.pretrained_cfg
    channels = getattr(network, "in_chans", cfg["input_size"][0])
    mean, std = (
        values if len(values) == channels else (sum(values) / len(values),) * channels
        for values in (tuple(cfg["mean"]), tuple(cfg["std"]))
    )
    size = max(cfg["input_size"][-1], getattr(network, "minimum_size", 1))
    usual = Preprocessing(size, cfg["crop_pct"], mean, std)
    if not cfg.get(TOLD):
        values = "; ".join(", ".join(f"{value:g}" for value in each) for each in (mean, std))
        _say(
            f"{where}: no preprocessing is known, images are prepared as is usual for {name}: "
            f"{size}×{size} pixels of {usual.crop_fraction:g} of the image, mean and std {values}"
        )
    return usual


def _say(message: str) -> None:
    warnings.warn(DefaultsWarning(message), stacklevel=4)  # where load_network was called
