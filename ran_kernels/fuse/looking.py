"""What can be told of a module without running it."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from ..parts import has_call_hooks, has_global_hooks, is_called_plainly
from .readers import UnusualError

#: What a class may define without being another kind of module.
_USUAL = {"__init__", "__module__", "__doc__", "__annotations__", "forward", "extra_repr"}
_OTHER_HOOKS = [
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
]
#: What every module has of itself, but for what says how it computes.
_ANY_MODULES = vars(nn.Module()).keys() - {"training"}
_COPYING = {"__getattribute__", "__deepcopy__", "__copy__", "__reduce__", "__reduce_ex__"}


def description(module: nn.Module) -> str:
    """Equal for modules that differ in their tensors' values alone."""
    parts = [
        (
            name,
            id(type(part)),
            [(key, mark(value)) for key, value in vars(part).items() if key not in _ANY_MODULES],
        )
        for name, part in module.named_modules()
    ]
    tensors = [(name, tensor.shape) for name, tensor in tensors_of(module).items()]
    return repr((parts, tensors))


def look_at(module: nn.Module) -> None:
    """Raises UnusualError for what shows without running anything."""
    if has_global_hooks():
        raise UnusualError("hooks for all modules are registered")
    for name, part in module.named_modules():
        where = name or "it"
        if has_call_hooks(part) or any(getattr(part, hooks) for hooks in _OTHER_HOOKS):
            raise UnusualError(f"{where} has hooks")
        if not is_called_plainly(part):
            raise UnusualError(f"{where} has been compiled or given another forward")
        for attribute, value in vars(part).items():
            if isinstance(value, Tensor):
                raise UnusualError(f"{where} keeps a tensor in its attribute {attribute}")
        for kind in type(part).__mro__:
            if not kind.__module__.startswith("torch.") and kind is not object:
                other = ((vars(nn.Module).keys() | _COPYING) - _USUAL) & vars(kind).keys()
                for method in sorted(other - {"__dict__", "__weakref__"}):
                    raise UnusualError(f"{where} has a {method} of its own")
    parameters = [*inspect.signature(module.forward).parameters.values()]
    if len(parameters) != 1 or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        raise UnusualError("its forward takes more than the features")


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of `module` by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


#: What is not looked into.
_WHOLE = (Tensor, nn.Module, type, ModuleType)


def state_of(module: nn.Module) -> dict[str, Any]:
    """What `module`, its parts and their classes hold besides tensors' values, to be compared."""
    state: dict[str, Any] = {}
    for name, part in module.named_modules():
        for attribute, value in vars(part).items():
            state[f"its attribute {f'{name}.{attribute}'.removeprefix('.')}"] = mark(value)
        for kind in type(part).__mro__:
            if not kind.__module__.startswith(("torch.", "builtins")):
                for attribute, value in vars(kind).items():
                    what = "a variable of" if isinstance(value, FunctionType) else "its attribute"
                    # By the class as well: one may have the name of its base.
                    held = state.setdefault(f"{what} {kind.__name__}.{attribute}", {})
                    held[id(kind)] = mark(value)
    return state


def _held(function: FunctionType) -> Iterator[Any]:
    """The variables around a function that it may change, and its defaults."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty cell
            yield cell.cell_contents
    yield from (function.__globals__.get(name) for name in function.__code__.co_names)
    yield function.__defaults__
    yield function.__kwdefaults__


def mark(value: Any, depth: int = 4) -> Any:
    """Equal before and after unless `value` was exchanged or something put into it."""
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None))):
        return repr(value)
    if depth and isinstance(value, FunctionType):
        return id(value), [mark(item, depth - 1) for item in _held(value)]
    if depth == 0 or isinstance(value, _WHOLE) or callable(value):
        return id(value)
    if isinstance(value, Mapping):
        return [(mark(key, depth - 1), mark(item, depth - 1)) for key, item in value.items()]
    if hasattr(value, "__iter__") and hasattr(value, "__len__"):
        return type(value), [mark(item, depth - 1) for item in value]
    return id(value), mark(vars(value), depth - 1) if hasattr(value, "__dict__") else None
