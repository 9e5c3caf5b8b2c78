"""What a network was made from, so that it can be made again."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import nn

from .options import TIMM_OPTIONS

#: Options that shape what is built; timm's others say where files are and what is published.
SHAPING = frozenset({"feature_cls", "features_only", "out_indices"})


@dataclass(frozen=True)
class Origin:
    """The arguments of ``ran.create_model`` that gave a network; its ``origin`` attribute."""

    name: str
    options: dict[str, Any]


def record_origin(model: nn.Module, name: str, options: dict[str, Any]) -> None:
    """Note on ``model`` that ``name`` and ``options`` gave it."""
    passing = {key for key in TIMM_OPTIONS if key not in SHAPING or options.get(key) is None}
    kept = {key: value for key, value in options.items() if key not in passing}
    # Not nn.Module's business: it is neither a parameter nor a module. A copy, as lists may change.
    model.origin = Origin(name, deepcopy(kept))  # type: ignore[assignment]
