"""A network from its name, its options and its tensors, all of which are checked first."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..checks import require_finite
from ..data.images import Preprocessing
from ..errors import UserError
from ..files import require_regular
from ..models.registry import create_model
from .tensors import FLOATS, INTEGERS, require_one_dtype, require_plain


def build_network(name: str, options: dict[str, Any]) -> nn.Module:
    """``ran.create_model`` with a UserError where the name or an option is wrong."""
    try:
        return create_model(name, **options)
    except (TypeError, ValueError) as error:
        # of "f() got an unexpected keyword argument 'x'", what the user can do something about
        reason = str(error).rpartition("() ")[2]
        raise UserError(f"model {name}: {reason}") from None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a file. Raises UserError that names it where it cannot be read."""
    require_regular(path, "a safetensors file")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: expected a readable safetensors file: {error}") from None


def assemble(
    build: Callable[[], nn.Module],
    tensors: Mapping[str, Tensor],
    *,
    source: Path,
    name: str,
    new_head: bool = False,
) -> nn.Module:
    """What ``build`` gives, with ``tensors`` for its own, in evaluation mode on the CPU.

    With ``new_head`` its classifier is newly initialised, and theirs is left out.

    Raises UserError if they are not the tensors of that network, which ``name`` calls, are none
    that it computes with, or hold NaN or infinity.
    """
    # On the meta device a hostile plan costs no memory, and no initialisation is thrown away.
    try:
        with torch.device("meta"):
            network = build()
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except Exception as error:  # which one depends on what nonsense the options hold
        kind = type(error).__name__
        raise UserError(f"{source}: options that build no {name}: {kind}: {error}") from None
    for key, value in tensors.items():
        require_plain(f"{source}: {key}", value)
    require_one_dtype(source, tensors)
    expected = network.state_dict()
    if new_head:
        expected, tensors = (without_head(network, named) for named in (expected, tensors))
    if differ := differences(expected, tensors):
        raise UserError(
            f"{source}: expected the tensors of {name}, got another network's: {differ}"
        )
    require_finite(str(source), tensors)
    # Copies: a file's own memory may be the file itself, and strides are those of training.
    copies = {
        key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()
    }
    network.load_state_dict(copies, assign=True, strict=not new_head)
    if new_head:
        _start_head(network, next((t.dtype for t in tensors.values() if t.dtype in FLOATS), None))
    return network.eval()


def without_head(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` by the names of ``network``, but for those of its classifier."""
    head = f"{network.pretrained_cfg['classifier']}."  # type: ignore[index]
    return {name: value for name, value in tensors.items() if not name.startswith(head)}


def _start_head(network: Any, dtype: torch.dtype | None) -> None:
    network.get_classifier().to_empty(device="cpu")  # the new one lies where the old one does
    network.reset_classifier(network.num_classes)
    network.get_classifier().to(dtype=dtype)


def require_size(model: nn.Module, preprocessing: Preprocessing, source: Path) -> None:
    """Raise UserError where images of that preprocessing are too small for the network."""
    least: int = getattr(getattr(model, "model", model), "minimum_size", 1)
    if preprocessing.image_size < least:
        raise UserError(
            f"{source}: a field is malformed: image_size: expected at least {least} for this "
            f"network, got {preprocessing.image_size}"
        )


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """How tensors differ in names, shapes and kinds, with the first of each; "" if they do not."""
    parts = []
    if missing := [key for key in expected if key not in found]:
        parts.append(f"{len(missing)} missing, first {missing[0]}")
    if unknown := [key for key in found if key not in expected]:
        parts.append(f"{len(unknown)} unknown, first {unknown[0]}")
    common = [key for key in found if key in expected]
    if other := [key for key in common if found[key].shape != expected[key].shape]:
        first = other[0]
        parts.append(
            f"{len(other)} of another shape, first {first}: "
            f"expected {tuple(expected[first].shape)}, got {tuple(found[first].shape)}"
        )
    kinds = [key for key in common if _kind(found[key]) != _kind(expected[key])]
    if kinds:
        first = kinds[0]
        parts.append(
            f"{len(kinds)} of another kind, first {first}: "
            f"expected {_kind(expected[first])}, got {found[first].dtype}"
        )
    return "; ".join(parts)


def _kind(tensor: Tensor) -> str:
    if tensor.dtype in FLOATS:
        return "floating point"
    return "integers" if tensor.dtype in INTEGERS else str(tensor.dtype).removeprefix("torch.")
