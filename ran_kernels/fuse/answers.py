"""What a forward asks the modules it belongs to: attributes, children and their classes."""

import types
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import nn

from .readers import UnusualError

#: The way from a module down to a part of it: names of children.
Path = tuple[str, ...]
#: What `getattr` gives where there is nothing.
MISSING = object()
#: Stands for any tensor.
PRESENT = object()
_PLAIN = (bool, int, float, complex, str, bytes, type(None), Enum, torch.dtype, torch.device,
          torch.memory_format)  # fmt: skip
#: Lists and dicts as a forward was given them.
Copies = dict[tuple[Path, str], Any]
#: Where modules keep what they are made of: those who ask for a part by name answer for it.
_KEPT = vars(nn.Module()).keys() - {"training"}


class Answers(NamedTuple):
    """What a forward asked its module and the parts below it."""

    kinds: dict[Path, type[nn.Module]]
    """The class of each part that it looked at or called."""
    names: dict[Path, tuple[str, ...]]
    """The children of each part whose children it went through."""
    values: dict[tuple[Path, str], Any]
    """Each attribute that it read, and method, but for ``training`` of the module itself."""


def kind_of(module: nn.Module) -> type[nn.Module]:
    """The class of `module`, without what `fuse` put over it."""
    return vars(type(module)).get("_ran_base", type(module))


def answer(module: Any, name: str) -> Any:
    """What `module` answers now when it is asked for `name`, to be compared with what it did."""
    if name == "forward" and name not in vars(module):
        return kind_of(module).forward
    value = getattr(module, name, MISSING)
    if isinstance(value, torch.Tensor):
        return PRESENT
    return value.__func__ if isinstance(value, types.MethodType) else value


def read(answers: Answers, copies: Copies, path: Path, module: nn.Module, name: str) -> Any:
    """The attribute `name` of `module`, which stands at `path`, and a line in `answers`.

    Raises:
        UnusualError: it holds something that may change without being set.
    """
    if name in _KEPT:
        if name in ("_parameters", "_buffers"):
            raise UnusualError("its forward goes through its parameters or buffers")
        if name == "_modules":
            children = object.__getattribute__(module, name)
            answers.names[path] = tuple(children)
            for child, part in children.items():
                _note_part(answers, (*path, child), part)
        return object.__getattribute__(module, name)
    try:
        value = object.__getattribute__(module, name)
    except AttributeError:
        own = vars(module)
        if name in own["_modules"]:
            _note_part(answers, (*path, name), own["_modules"][name])
        else:
            tensor = {**own["_buffers"], **own["_parameters"]}.get(name, MISSING)
            answers.values[path, name] = PRESENT if isinstance(tensor, torch.Tensor) else tensor
        raise
    if name == "forward" and name not in vars(module):
        value = types.MethodType(kind_of(module).forward, module)
    if (path, name) == ((), "training"):
        return value
    if _is_plain(value):
        answers.values[path, name] = value
    elif isinstance(value, (list, dict)):
        # A copy: what the forward puts into it shows afterwards, and is not in the module's own.
        answers.values[path, name] = _copy(value)
        return copies.setdefault((path, name), _copy(value))
    elif isinstance(value, types.MethodType) and value.__self__ in (module, type(module)):
        answers.values[path, name] = value.__func__
    elif isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
        answers.values[path, name] = value
    else:
        raise UnusualError(f"its forward reads its attribute {'.'.join((*path, name))}, which "
                           f"holds a {type(value).__name__}")  # fmt: skip
    return value


def _note_part(answers: Answers, path: Path, part: nn.Module | None) -> None:
    if part is None:
        answers.values[path[:-1], path[-1]] = None
    else:
        answers.kinds[path] = kind_of(part)


def _is_plain(value: Any) -> bool:
    """Whether `value` never changes."""
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _copy(value: Any) -> Any:
    """Of lists and dicts of what never changes."""
    if isinstance(value, list):
        return [_copy(item) for item in value]
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if not _is_plain(value):
        raise UnusualError(f"its forward reads a list or dict with a {type(value).__name__}")
    return value
