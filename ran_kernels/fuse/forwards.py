"""Gives one module another forward and keeps it the module it was: its class is put over."""

import copy
import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import backends
from ..parts import are_called_plainly, are_plain
from .answers import Answers, Path, answer, kind_of
from .following import follow
from .pairs import NORMS, Found, fuse_pairs
from .readers import UnusualError

#: How a class may say otherwise how it is copied: what stands for it would not be.
_COPYING = ("__getattribute__", "__deepcopy__", "__reduce__", "__reduce_ex__")


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
    if hasattr(base, "_ran_base"):
        raise UnusualError("its class was put over one that is fused: fuse before that, or unfuse")
    if isinstance(module, torch.jit.ScriptModule):
        raise UnusualError("it is a compiled script")
    if "forward" in vars(module):
        raise UnusualError("it has been given another forward")
    for method in _COPYING:
        if getattr(base, method, None) is not getattr(nn.Module, method, None):
            raise UnusualError(f"it has a {method} of its own")
    if "__init_subclass__" in {name for kind in base.__mro__[:-1] for name in vars(kind)}:
        raise UnusualError("its class is told of those derived from it")
    places = [part for _, part in module.named_modules(remove_duplicate=False)]
    alike = known.setdefault(base, [])
    now = vars(type(module)).get("_ran_outcome")
    if now is not None and now not in alike:
        alike.append(now)
    if len(places) == len(set(places)):
        for outcome in alike:
            if all(_holds(way, module) for way in outcome.ways):
                return outcome
    made = _outcome(module, base)
    if made.cls is not None:
        made.cls._ran_outcome = made  # type: ignore[attr-defined]
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
    cls = _class(base, len(names), tuple(ways)) if fused else None
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
    run = type(fx.GraphModule(module, graph)).forward
    made = Way(kind, training, run, plain, exact, kinds, children, values)
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
        now = answer(_part(module, path), name)
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
    if len(args) != count or backends.exporting():
        return None
    kind = list if type(args[0]) is list else Tensor
    # Of a tensor's own kind: a forward may ask for that, and was answered so.
    for arg in args[kind is list :]:
        if not isinstance(arg, Tensor) or not are_plain(arg):
            return None
    for way in ways:
        if way.training == module.training and way.kind is kind:
            return way if _holds(way, module) else None
    return None


def _class(base: type[nn.Module], count: int, ways: Ways) -> type[nn.Module]:
    @wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        way = None if kwargs else _chosen(ways, count, self, args)
        return base.forward(self, *args, **kwargs) if way is None else way.run(self, *args)

    def reduced(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        # A pickle is for where nothing is known of what is here.
        return object.__new__, (base,), object.__reduce_ex__(self, 4)[2]

    def copied(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
        replica = memo[id(self)] = object.__new__(type(self))
        replica.__setstate__(copy.deepcopy(object.__reduce_ex__(self, 4)[2], memo))
        return replica

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
