"""Residual Attention Networks and ResNets with CBAM in PyTorch.

``__init__.pyi`` lists each public name once, with the room it comes from: type checkers read it,
and so does ``__getattr__``, which loads a name when it is first asked for. Networks need neither
matplotlib nor Lightning nor the readers of data; what a small install lacks is named when needed.
"""

import ast
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from .extras import needed_by
from .program import is_program


def _rooms() -> dict[str, str]:
    """The module that each public name comes from, relative to this package."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text("utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {name.name: f".{node.module}" for node in imports for name in node.names}


_ROOMS = _rooms()
__all__ = sorted(_ROOMS)


def __getattr__(name: str) -> Any:
    value: Any
    if name == "__version__":
        value = metadata.version("ran-attention")
    elif name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    else:
        with needed_by(f"ran.{name}"):
            value = getattr(import_module(_ROOMS[name], __name__), name)
    globals()[name] = value  # the next time it is found without asking
    return value


def __dir__() -> list[str]:
    return list(__all__)


if not is_program():
    # timm knows the networks as soon as `ran` is imported.
    from .models import registry as registry
