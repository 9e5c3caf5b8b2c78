"""Weights as safetensors, with a JSON file beside them that says how to rebuild the network."""

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from .data.images import Preprocessing
from .errors import UserError
from .files import read_json, replacing, write_json
from .registry import create_model

WEIGHTS_FILE = "model.safetensors"
CARD_SUFFIX = ".json"
#: Under this key a Lightning checkpoint holds the network's card.
CARD_KEY = "ran_network"
#: Before the names of the network's tensors in a Lightning checkpoint.
NETWORK_PREFIX = "network."

_FORMAT, _VERSION = "ran-network", 1


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
        sizes = {"num_classes": len(self.class_names), "in_chans": self.preprocessing.channels}
        if clash := sorted(sizes.keys() & self.options.keys()):
            raise UserError(f"option {clash[0]}: expected none, the data decide it")
        return build_network(self.model, {**self.options, **sizes})

    def to_json(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "model": self.model,
            "options": self.options,
            "num_classes": len(self.class_names),
            "in_chans": self.preprocessing.channels,
            "class_names": list(self.class_names),
            "preprocessing": self.preprocessing.to_json(),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any], source: Path) -> "NetworkCard":
        """Raises UserError that names ``source``, where a field is missing or malformed."""
        try:
            return cls(
                model=str(content["model"]),
                class_names=tuple(str(name) for name in content["class_names"]),
                preprocessing=Preprocessing.from_json(content["preprocessing"]),
                options=dict(content["options"]),
            )
        except KeyError as error:
            raise UserError(f"{source}: expected a field {error}, it has none") from None
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError(f"{source}: a field is malformed: {error}") from None


def build_network(model: str, options: dict[str, Any]) -> nn.Module:
    """``ran.create_model`` with a UserError where the name or an option is wrong."""
    try:
        return create_model(model, **options)
    except (TypeError, ValueError) as error:
        # of "f() got an unexpected keyword argument 'x'", what the user can do something about
        reason = str(error).rpartition("() ")[2]
        raise UserError(f"model {model}: {reason}") from None


def save_network(network: nn.Module, card: NetworkCard, folder: str | Path) -> Path:
    """Writes ``model.safetensors`` and ``model.json`` into ``folder``; returns the former's path.

    Each file is written whole or not at all, in place of one that is there.
    """
    weights = Path(folder) / WEIGHTS_FILE
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()
    }
    with replacing(weights) as partial:
        partial.write_bytes(save(tensors))
    write_json(weights.with_suffix(CARD_SUFFIX), card.to_json())
    return weights


def load_network(path: str | Path) -> tuple[nn.Module, NetworkCard]:
    """The network that ``save_network`` or a training saved, in evaluation mode on the CPU.

    Args:
        path: the folder, the ``.safetensors`` file with its JSON beside it, or a ``.ckpt`` file
            of a training. Nothing in any of them is executed.

    Raises:
        UserError: a file is missing, damaged or of another kind, or the weights are another
            network's; the message names the first tensors that differ.
    """
    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS_FILE
    if not path.is_file():
        raise UserError(f"{path}: expected a checkpoint, found no file there")
    if path.suffix == ".ckpt":
        tensors, card = _read_lightning(path)
    else:
        card_path = path.with_suffix(CARD_SUFFIX)
        content = read_json(card_path, format=_FORMAT, version=_VERSION)
        card = NetworkCard.from_json(content, card_path)
        tensors = _read_safetensors(path)
    network = card.build()
    load_weights(network, tensors, source=path, name=card.model)
    return network.eval(), card


def load_weights(
    network: nn.Module, tensors: dict[str, Tensor], *, source: Path, name: str
) -> None:
    """Copies ``tensors`` into ``network``, which is called ``name``; they must match exactly.

    Raises:
        UserError: they are another network's. ``network`` keeps the weights it had.
    """
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    differences = []
    if missing := [key for key in expected if key not in found]:
        differences.append(f"{len(missing)} missing, first {missing[0]}")
    if unknown := [key for key in found if key not in expected]:
        differences.append(f"{len(unknown)} unknown, first {unknown[0]}")
    if other := [key for key in found if key in expected and found[key] != expected[key]]:
        first = other[0]
        differences.append(
            f"{len(other)} of another shape, first {first}: "
            f"expected {expected[first]}, got {found[first]}"
        )
    if differences:
        raise UserError(
            f"{source}: expected the tensors of {name}, got another network's: "
            + "; ".join(differences)
        )
    network.load_state_dict(tensors)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: expected a readable safetensors file: {error}") from None


def _read_lightning(path: Path) -> tuple[dict[str, Tensor], NetworkCard]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        content, state = checkpoint[CARD_KEY], checkpoint["state_dict"]
    except (OSError, EOFError, RuntimeError, TypeError, pickle.UnpicklingError):
        raise UserError(f"{path}: expected a readable checkpoint of tensors and numbers") from None
    except KeyError as error:
        raise UserError(f"{path}: expected a checkpoint of ran train, it has no {error}") from None
    tensors = {
        key.removeprefix(NETWORK_PREFIX): value
        for key, value in state.items()
        if key.startswith(NETWORK_PREFIX)
    }
    return tensors, NetworkCard.from_json(content, path)
