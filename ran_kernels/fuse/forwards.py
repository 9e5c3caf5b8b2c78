"""Gives one module another forward and keeps it the module it was: its class is put over."""

import copy
import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import backends
from ..parts import are_called_plainly
from .answers import MISSING, Answers, Path, kind_of
from .following import follow
from .pairs import NORMS, Found, fuse_pairs
from .readers import UnusualError

#: How a class may say otherwise how it is copied: what stands for it would not be.
_COPYING = ("__getattribute__", "__deepcopy__", "__copy__", "__reduce__", "__reduce_ex__")


class Way(NamedTuple):
    """One forward, rewritten, and what must hold for it."""

    kind: type  # of the first argument
    training: bool
    run: Callable[..., Any]
    plain: tuple[Path, ...]  # parts that it does not call, so must work plainly
    exact: tuple[tuple[Path, tuple[type[nn.Module], ...]], ...]
    kinds: tuple[tuple[Path, type[nn.Module]], ...]
    names: tuple[tuple[Path, tuple[str, ...]], ...]
    values: tuple[tuple[Path, str, Any], ...]
    key: str  # equal for ways that are alike


Ways = tuple[Way, ...]


def base_of(module: nn.Module) -> type[nn.Module] | None:
    """The class that `fuse` put another over, None where it did not."""
    return vars(type(module)).get("_ran_base")


def take_off(module: nn.Module) -> bool:
    """Gives `module` its own class back. Whether there was another over it."""
    base = base_of(module)
    if base is not None:
        module.__class__ = base
    return base is not None


class Outcome(NamedTuple):
    """What can be made of a module, and of those alike."""

    ways: Ways
    fused: tuple[str, ...]
    left: tuple[str, ...]
    cls: type[nn.Module] | None
    """The class to put over its own, None where nothing is fused."""


def outcome_of(module: nn.Module, known: dict[type, list[Outcome]]) -> Outcome:
    """What can be made of `module`, as of one in `known` that is alike, which grows.

    Raises:
        UnusualError: nothing can be said of its forward.
    """
    base = kind_of(module)
    if isinstance(module, torch.jit.ScriptModule):
        raise UnusualError("it is a compiled script")
    if "forward" in vars(module):
        raise UnusualError("it has been given another forward")
    for method in _COPYING:
        if getattr(base, method, None) is not getattr(nn.Module, method, None):
            raise UnusualError(f"it has a {method} of its own")
    places = [part for _, part in module.named_modules(remove_duplicate=False)]
    alike = known.setdefault(base, [])
    if len(places) == len(set(places)):
        for outcome in alike:
            if all(_holds(way, module) for way in outcome.ways):
                return outcome
    made = _outcome(module, base)
    if not made.left:
        alike.append(made)
    return made


def _outcome(module: nn.Module, base: type[nn.Module]) -> Outcome:
    names = _required(base)
    ways: list[Way] = []
    fused: dict[str, None] = {}
    left: dict[str, None] = {}
    for training in (True, False):
        kinds: list[type] = [Tensor]
        for kind in kinds:  # which may grow
            try:
                found, way, asked = _way(module, names, kind, training)
            except UnusualError:
                if kind is Tensor:
                    raise
                continue  # it takes tensors alone
            if asked and kind is Tensor and len(names) == 1:
                kinds.append(list)
            fused.update(dict.fromkeys(found.fused))
            left.update(dict.fromkeys(found.left))
            ways.append(way)
    cls = _class_over(base, len(names), tuple(ways)) if fused else None
    return Outcome(tuple(ways), tuple(fused), tuple(left), cls)


def _required(base: type[nn.Module]) -> list[str]:
    """The arguments of `base`'s forward that have no default."""
    _, *parameters = inspect.signature(base.forward).parameters.values()
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in parameters if p.kind in named and p.default is p.empty]
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if not names or keywords:
        raise UnusualError("its forward takes no features")
    return names


class _Attempt(NamedTuple):
    graph: fx.Graph
    answers: Answers
    found: Found
    asked: bool
    inline: frozenset[Path]


def _attempt(
    module: nn.Module, names: list[str], kind: type, training: bool, inline: frozenset[Path]
) -> _Attempt:
    before = [(part, part.training) for part in module.modules()]
    try:
        for part in module.modules():
            part.training = training
        (graph, answers), asked = follow(module, names, kind, inline)
    finally:
        for part, mode in before:
            part.training = mode
    return _Attempt(graph, answers, fuse_pairs(graph, module), asked, inline)


def _best(module: nn.Module, names: list[str], kind: type, training: bool) -> _Attempt:
    """With the parts followed that end in a normalisation, where that fuses it."""
    best = now = _attempt(module, names, kind, training, frozenset())
    while not now.found.wanted <= now.inline:
        try:
            now = _attempt(module, names, kind, training, now.inline | now.found.wanted)
        except UnusualError:
            break
        if len(now.found.fused) > len(best.found.fused):
            best = now
    return best


def _way(
    module: nn.Module, names: list[str], kind: type, training: bool
) -> tuple[Found, Way, bool]:
    graph, answers, found, asked, inline = _best(module, names, kind, training)
    exact = tuple((path, _exact(module.get_submodule(".".join(path)))) for path in found.exact)
    plain = (*found.exact, *sorted(inline))
    # Any normalisation may stand for another: those fused are of `exact` classes.
    kinds = tuple(
        (path, _BatchNorm if part in NORMS else part) for path, part in answers.kinds.items()
    )
    children = tuple(answers.names.items())
    values = tuple((*where, value) for where, value in answers.values.items())
    key = (
        (kind.__name__, training, graph.python_code("self").src, children, exact),
        [id(node.target) for node in graph.nodes if node.op == "call_function"],
        [(path, id(part)) for path, part in kinds],
        [(path, name, id(value) if callable(value) else value) for path, name, value in values],
    )
    run = type(fx.GraphModule(module, graph)).forward
    made = Way(kind, training, run, plain, exact, kinds, children, values, repr(key))
    return found, made, asked


def _exact(part: nn.Module) -> tuple[type[nn.Module], ...]:
    return NORMS if type(part) in NORMS else (type(part),)


def _holds(way: Way, module: nn.Module) -> bool:
    """Whether the forward would ask and be answered as when it was followed."""
    for path, names in way.names:
        part = _part(module, path)
        if part is None or tuple(part._modules) != names:
            return False
    for path, kind in way.kinds:
        if not isinstance(_part(module, path), kind):
            return False
    for path, kinds in way.exact:
        if type(_part(module, path)) not in kinds:
            return False
    for path, name, value in way.values:
        now = getattr(_part(module, path), name, MISSING)
        if now is not value and (type(now) is not type(value) or now != value):
            return False
    return are_called_plainly([_part(module, path) for path in way.plain])


def _part(module: Any, path: Path) -> Any:
    for name in path:
        if module is None:
            return None
        module = module._modules.get(name)
    return module


def _chosen(ways: Ways, count: int, module: nn.Module, args: tuple[Any, ...]) -> Way | None:
    """The way that does as the class's own forward does with `args`."""
    if len(args) != count or torch.jit.is_tracing() or backends.exporting():
        return None
    for arg in args[1:]:
        if not isinstance(arg, Tensor):
            return None
    for way in ways:
        if way.training == module.training and isinstance(args[0], way.kind):
            return way if _holds(way, module) else None
    return None


_made: WeakValueDictionary[Any, type[nn.Module]] = WeakValueDictionary()


def _class_over(base: type[nn.Module], count: int, ways: Ways) -> type[nn.Module]:
    """One class for all modules that are alike."""
    key = (base, count, *(way.key for way in ways))
    made = _made.get(key)
    if made is None:
        made = _made[key] = _class(base, count, ways)
    return made


def _class(base: type[nn.Module], count: int, ways: Ways) -> type[nn.Module]:
    @wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        way = None if kwargs else _chosen(ways, count, self, args)
        return base.forward(self, *args, **kwargs) if way is None else way.run(self, *args)

    def copied(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
        replica = memo[id(self)] = type(self).__new__(type(self))
        replica.__setstate__(copy.deepcopy(_state(self), memo))
        return replica

    def reduced(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        return _waiting, (base,), _state(self)

    members = {
        "__doc__": base.__doc__,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__deepcopy__": copied,
        "__reduce_ex__": reduced,
        "_ran_base": base,
        "forward": forward,
    }
    return type(base.__name__, (base,), members)


def _state(module: nn.Module) -> Any:
    """What is saved of `module`, whose class does nothing of its own about it."""
    return object.__reduce_ex__(module, 4)[2]


def _waiting(base: type[nn.Module]) -> nn.Module:
    """A module of the class `base` that is fused as soon as it has its parts."""

    def awake(self: Any, state: Any) -> None:
        self.__class__ = base
        self.__setstate__(state)
        put_over(self)

    cls: Any = type(base.__name__, (base,), {"__setstate__": awake})
    made: nn.Module = cls.__new__(cls)
    return made


def put_over(module: nn.Module) -> None:
    """Fuses what stands in `module` itself, if anything does."""
    with suppress(UnusualError):
        cls = outcome_of(module, {}).cls
        if cls is not None:
            module.__class__ = cls
