"""Files and nested dictionaries to one flat dictionary of named tensors."""

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError
from ..files import require_path, require_regular
from .tensors import require_plain

#: What ``torch.save`` is asked to write to.
TORCH_SUFFIXES = (".pt", ".pth", ".pkl", ".tar", ".bin", ".ckpt")
SUFFIXES = (*TORCH_SUFFIXES, ".safetensors", ".npz")
#: Where trainings put the weights among other things, most specific first.
NESTED = ("state_dict", "model_state_dict", "model_state", "model", "network", "net", "weights")
#: How many times its size a compressed file of weights may unpack to; numbers hardly compress.
MOST_EXPANSION = 20


def read_tensors(weights: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors by name, from a file or from a dictionary as a file may hold.

    Dictionaries nested under the names of ``NESTED`` are unwrapped, NumPy arrays become tensors,
    and a list of arrays becomes ``name.0``, ``name.1`` and so on. Nothing in a file is executed.

    Raises UserError, in one line without the file's name, where that is not what it holds.
    """
    content = (
        weights if isinstance(weights, Mapping) else _read_file(require_path("weights", weights))
    )
    tensors: dict[str, Tensor] = {}
    for name, value in _unwrap(content).items():
        if isinstance(value, list | tuple):
            tensors |= {f"{name}.{index}": _tensor(name, item) for index, item in enumerate(value)}
        else:
            tensors[name] = _tensor(name, value)
    if not tensors:
        raise UserError("expected tensors by name, got empty lists")
    return tensors


def _read_file(path: Path) -> Any:
    _require_regular(path)
    if not path.is_file():
        raise UserError("expected a file of weights, found none there")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"expected one of {', '.join(SUFFIXES)}, got {suffix or 'no suffix'!r}")
    # Where a reader stops in a damaged or hostile file, and with which exception, depends on the
    # bytes: any failure to read is one and the same to the user.
    try:
        if suffix == ".safetensors":
            return load_file(path)
        if suffix == ".npz":
            if zipfile.is_zipfile(path):
                _require_unpacked(path, MOST_EXPANSION)
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        return load_torch(path)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_reason(suffix, error)) from None


def load_torch(path: Path, *, whole: bool = False) -> Any:
    """What ``torch.save`` wrote, on the CPU; executes nothing and reads tensors as they are used.

    ``whole`` reads them at once, so that the file may change, and compares the checksums: torch
    takes a flipped bit for a weight like any other.

    Raises UserError, without the file's name, for a file that would unpack to more than it is,
    which torch.save never writes; for a damaged one whatever torch raises.
    """
    stored = zipfile.is_zipfile(path) and _require_unpacked(path, 1)
    if whole:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(damaged)
    mapped = stored and not whole and _is_utf8(path)  # of which torch wants its name for that
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says of sparse tensors, which are refused
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _require_unpacked(path: Path, times: int) -> bool:
    """Whether a zip file holds its parts as they are, none compressed.

    Raises UserError where its directory declares more than so many times its size: compressed zeros
    become a thousand times as many; parts that overlap, any number.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    declared, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if declared > times * size:
        raise UserError(
            f"expected a file of weights, this one of {size:,} bytes would unpack to {declared:,}"
        )
    return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)


def _require_regular(path: Path) -> None:
    try:
        require_regular(path, "a file of weights")
    except UserError as error:
        raise UserError(str(error).partition(": ")[2]) from None


def _reason(suffix: str, error: Exception) -> str:
    """Why a file of that suffix could not be read, in one line."""
    if forbidden := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return (
            f"expected tensors and numbers alone, it also asks to run {forbidden[1]}; "
            "save its state_dict by itself where you trust it"
        )
    if isinstance(error, PermissionError):
        return "expected a file that may be read, permission was denied"
    if suffix == ".npz" and "allow_pickle" in str(error):
        return "expected arrays of numbers alone, it also holds pickled objects"
    kind = suffix[1:] if suffix in (".npz", ".safetensors") else "PyTorch"
    return f"expected a {kind} file of weights, this one is damaged or of another kind"


def _unwrap(content: Any) -> Mapping[str, Any]:
    # A dictionary may hold itself: no training nests deeper than this.
    for _ in range(3):
        if isinstance(content, Mapping):
            inner = (content[key] for key in NESTED if isinstance(content.get(key), Mapping))
            content = next(inner, content)
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"expected tensors by name, got {_kind(content)}")
    if strange := [name for name in content if not isinstance(name, str)]:
        raise UserError(f"expected tensors by name, got {strange[0]!r} for a name")
    return content


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        # Arrays may be of the other byte order, which tensors cannot be.
        value = torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    if not isinstance(value, Tensor):
        raise UserError(f"expected tensors by name, {name} is {_kind(value)}")
    require_plain(name, value)
    return value.detach()


def _kind(value: Any) -> str:
    empty = isinstance(value, Mapping) and not value
    return "an empty dictionary" if empty else f"of type {type(value).__name__}"
