"""Sizes of tensors that note what a module's forward asks of them."""

import sys
from collections.abc import Callable
from typing import Any

import torch

#: Layers that ask their own buffers; their kinds are checked elsewhere.
NORMS = ("torch.nn.modules.batchnorm", "timm.layers.norm_act")
#: Methods of integers that give what is no integer, or one that says little of the first.
_QUESTIONS = frozenset({
    "abs", "and", "bool", "ceil", "divmod", "eq", "float", "floor", "floordiv", "format", "ge",
    "gt", "hash", "int", "invert", "le", "lshift", "lt", "mod", "ne", "or", "pow", "rand",
    "rdivmod", "repr", "rfloordiv", "rlshift", "rmod", "ror", "round", "rpow", "rrshift", "rshift",
    "rtruediv", "rxor", "truediv", "trunc", "xor",
})  # fmt: skip


def is_torchs(name: str) -> bool:
    """Whether the Python module of this name is PyTorch's, or a layer that is checked."""
    return name.startswith("torch.") or name in NORMS


def sizes(answer: Any, found: list[str]) -> Any:
    """A tensor's size or sizes, which note in `found` what is asked of them."""
    if not isinstance(answer, tuple):
        return _Size(answer, found)
    # A module is built for a number of channels, and may see to it.
    traced = [n if i == 1 else _Size(n, found) for i, n in enumerate(answer)]
    return torch.Size(traced)


class _Size(int):
    """An integer that notes when somebody compares it, or makes of it what notes no comparison."""

    found: list[str]

    def __new__(cls, value: int, found: list[str]) -> "_Size":
        self = super().__new__(cls, value)
        self.found = found
        return self


def _arithmetic(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def run(self: _Size, *others: Any) -> Any:
        result = plain(self, *others)
        return _Size(result, self.found) if type(result) is int else result

    return run


def _question(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def run(self: _Size, *others: Any) -> Any:
        if not is_torchs(str(sys._getframe(1).f_globals.get("__name__", ""))):
            self.found.append("its forward asks how large the input is")
        return plain(self, *others)

    return run


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "neg", "pos"):
    setattr(_Size, f"__{_name}__", _arithmetic(f"__{_name}__"))
for _name in _QUESTIONS:
    setattr(_Size, f"__{_name}__", _question(f"__{_name}__"))
