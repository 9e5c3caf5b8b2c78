"""What a network was saved as: a folder, a ``.safetensors`` file or a training's checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UserError
from ..files import require_regular
from .assembly import read_safetensors
from .card import CARD_FILE, check_card, read_card
from .reading import load_torch

WEIGHTS_FILE = "model.safetensors"
#: Under this key a Lightning checkpoint holds the network's card.
CARD_KEY = "ran_network"
#: And under this one the number of processes that trained it.
PROCESSES_KEY = "ran_processes"
#: Before the names of the network's tensors in a Lightning checkpoint.
NETWORK_PREFIX = "network."


@dataclass(frozen=True)
class Saved:
    """The tensors of a network and what its ``model.json`` says of it.

    Attributes:
        tensors: by the network's names.
        content: of the card, checked.
        weights, card: the files that hold them, for messages; one and the same checkpoint, or two.
    """

    tensors: dict[str, Tensor]
    content: dict[str, Any]
    weights: Path
    card: Path


def read_saved(path: Path) -> Saved:
    """What is in a folder, in the ``.safetensors`` file of one, or in a ``.ckpt`` of a training.

    Raises UserError that names the file that is missing, damaged or of another kind.
    """
    if path.is_dir():
        path = path / WEIGHTS_FILE
    require_file(path)
    if path.suffix not in (".ckpt", ".safetensors"):
        raise UserError(f"{path}: expected a folder, a .safetensors or a .ckpt file")
    if path.suffix == ".safetensors":
        return read_pair(path, path.with_suffix(Path(CARD_FILE).suffix))
    tensors, content = _read_lightning(path)
    check_card(content, path)
    return Saved(tensors, content, path, path)


def read_pair(weights: Path, card: Path) -> Saved:
    """A ``.safetensors`` file and the JSON of it. Raises UserError as ``read_saved`` does."""
    content = read_card(card)
    return Saved(read_safetensors(weights), content, weights, card)


def read_checkpoint(path: Path, *, whole: bool = False) -> Any:
    """What is in a Lightning checkpoint, as ``load_torch`` reads it.

    Raises UserError that names the file, where it is none.
    """
    require_file(path)
    try:
        return load_torch(path, whole=whole)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception:  # a damaged pickle raises whatever its bytes happen to say
        raise UserError(f"{path}: expected a readable checkpoint of tensors and numbers") from None


def require_file(path: Path) -> None:
    """Raise UserError unless there is a file."""
    require_regular(path, "a checkpoint")
    if not path.is_file():
        raise UserError(f"{path}: expected a checkpoint, found no file there")


def _read_lightning(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    checkpoint = read_checkpoint(path)
    content, state = (_table(path, checkpoint, key) for key in (CARD_KEY, "state_dict"))
    if not all(isinstance(key, str) and isinstance(state[key], Tensor) for key in state):
        raise UserError(f"{path}: expected named tensors in 'state_dict', it has others")
    tensors = {
        key.removeprefix(NETWORK_PREFIX): value
        for key, value in state.items()
        if key.startswith(NETWORK_PREFIX)
    }
    return tensors, content


def _table(path: Path, checkpoint: Any, key: str) -> dict[Any, Any]:
    found = checkpoint.get(key) if isinstance(checkpoint, dict) else None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a checkpoint of ran train, it has no table {key!r}")
    return found
