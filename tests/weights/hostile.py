"""Files as an attacker or a broken program would leave them; each case writes its own."""

import json
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ran.data import Preprocessing
from ran.weights.network_card import NetworkCard
from ran.weights.saved import NETWORK_PREFIX
from tests.tiny import TINY_OPTIONS

CARD = NetworkCard(
    model="attention56_cifar_pool",
    class_names=("cat", "dog", "eel"),
    preprocessing=Preprocessing(16, 0.875, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)),
    options=TINY_OPTIONS,
)
#: The tensor that is made hostile.
VICTIM = "head.fc.weight"


def _values() -> dict[str, Tensor]:
    return {name: value.clone() for name, value in CARD.build().state_dict().items()}


def _nan(value: Tensor) -> Tensor:
    value.view(-1)[3] = math.nan
    return value


#: What a tensor may be instead of weights, by a word of the error.
TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "meta": lambda value: value.to("meta"),
    "sparse_coo": lambda value: value.to_sparse(),
    "sparse_csr": lambda value: value.to_sparse_csr(),
    "nested": lambda value: torch.nested.nested_tensor([value, value[:1]]),
    "a nested one": lambda value: torch.nested.nested_tensor([value], layout=torch.jagged),
    "float8_e4m3fn": lambda value: value.to(torch.float8_e4m3fn),
    "complex64": lambda value: value.to(torch.complex64),
    "uint16": lambda value: value.abs().to(torch.uint16),
    "NaN": _nan,
    "quint8": lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.quint8),
}
#: Those that a network of mixed dtypes, or of another kind, would not compute with.
MIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "float16": lambda value: value.half(),
    "integers|floating point": lambda value: value.to(torch.int64),
}
#: Those that safetensors can hold.
SAFE = ("float8_e4m3fn", "uint16", "NaN", "complex64", *MIXED)


def write_checkpoint(path: Path, change: Callable[[Tensor], Tensor]) -> None:
    """A checkpoint of a training, ``.ckpt``, whose ``VICTIM`` is what ``change`` makes of it."""
    values = _values()
    values[VICTIM] = change(values[VICTIM])
    state = {f"{NETWORK_PREFIX}{name}": value for name, value in values.items()}
    torch.save({"ran_network": CARD.to_json(), "state_dict": state}, path)


def write_folder(folder: Path, change: Callable[[Tensor], Tensor] | None = None) -> None:
    """``model.safetensors`` and ``model.json``."""
    values = _values()
    if change is not None:
        values[VICTIM] = change(values[VICTIM])
    folder.mkdir(exist_ok=True)
    save_file(values, folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps(CARD.to_json()))


def write_bomb(path: Path, size: int) -> None:
    """A checkpoint that unpacks to ``size`` bytes of zeros, a thousand times its own."""
    whole = path.with_suffix(".whole")
    torch.save({"state_dict": {"zeros": torch.zeros(size, dtype=torch.uint8)}}, whole)
    with (
        zipfile.ZipFile(whole) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    whole.unlink()


def write_pipe(path: Path) -> None:
    """A FIFO that nobody writes to: who reads it waits for ever."""
    os.mkfifo(path)


#: (where, value, what the error says) of a card; where is a path into the JSON.
CARDS: list[tuple[tuple[str, ...], Any, str]] = [
    *[
        (("preprocessing", "image_size"), value, "image_size: expected 1 to 8192 pixels")
        for value in (0, -5, 10**9, 16.5, "wide", True, None)
    ],
    (("preprocessing", "image_size"), 1, "image_size: expected at least 3"),
    *[
        (("preprocessing", "crop_fraction"), value, "crop_fraction: expected a number from 0.25")
        for value in (0, -1, 1e-9, math.nan, math.inf, "0.875", None, 2)
    ],
    (("preprocessing", "mean"), "5", "mean: expected a number for each"),
    (("preprocessing", "mean"), [math.nan] * 3, "mean: expected a number from -10000 to 10000"),
    (("preprocessing", "mean"), [0.5, 0.5, None], "mean: expected a number from"),
    (("preprocessing", "mean"), [0.5], "std: expected 1 number as of mean"),
    (("preprocessing", "std"), [0, 1, 1], "std: expected a number from 0.0001 to 10000, got 0"),
    (("preprocessing", "std"), [1, math.nan, 1], "std: expected a number from"),
    (("preprocessing", "std"), [], "std: expected a number for each"),
    (("preprocessing", "std"), [0.2] * 4, "std: expected 3 numbers as of mean"),
    (("preprocessing", "std"), [0.2] * 2000, "std: expected a number for each"),
    (("preprocessing", "interpolation"), "bicubic", "interpolation: expected one of 'bilinear'"),
    (("preprocessing",), [], "preprocessing: expected a table"),
    (("class_names",), "cat", "class_names: expected a list of texts, got 'cat'"),
    (("class_names",), ["cat", "dog", 3], "class_names: expected a list of texts"),
    (("class_names",), ["cat"], "class_names: expected 3 names as of num_classes, got ['cat']"),
    (("class_names",), [], "class_names: expected a list of texts"),
    (("num_classes",), 2, "class_names: expected 2 names as of num_classes"),
    (("num_classes",), 10**9, "num_classes: expected an integer of at least 0 and at most"),
    (("num_classes",), "3", "num_classes: expected an integer"),
    (("in_chans",), 1, "mean: expected 1 number as of in_chans"),
    (("in_chans",), 0, "in_chans: expected an integer of at least 1"),
    (("model",), ["attention56"], "model is ['attention56']"),
    (("options",), "x", "options is 'x'"),
    (("options", "cache_dir"), "/", "options: expected those of the network alone"),
    *[(("options", "modules"), [n], "modules: expected ") for n in (500, 10**4, 10**7, -1, "x")],
    (("options", "modules"), [1] * 10**4, "modules: expected one integer"),
    (("options", "mask_depths"), [10**4], "mask_depths: expected one integer"),
    (("options", "widths"), [2**20], "widths: expected a network of at most 4,000,000,000"),
    *[
        (("options", name), value, f"{name}: expected an integer")
        for name in ("tail_units", "p", "r", "t", "post_units")
        for value in (10**4, 10**7, -1, 1.5, "2")
    ],
    (("options", "stem_kernel"), 10**9 + 1, "stem_kernel: expected an integer"),
    (("options", "strides"), [10**9], "strides: expected one integer"),
    (("options", "width_multiplier"), 1e308, "width_multiplier: expected a positive number"),
    (("options", "drop_rate"), math.nan, "drop_rate: expected a probability"),
    (("options", "features_only"), "yes", "features_only: expected one of"),
    (("options", "out_indices"), [10**9], "out_indices: expected the last"),
]


def edited(where: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The card's JSON with another value there."""
    content: dict[str, Any] = json.loads(json.dumps(CARD.to_json()))
    table = content
    for key in where[:-1]:
        table = table[key]
    table[where[-1]] = value
    return content
