"""A module's own forward as a graph, its children whole, and what the forward asked on its way.

torch.fx runs the forward on stand-ins for tensors and writes down what is done with them. The graph
holds as long as every question would be answered as it was then, so the answers are written down,
too. What would not show in the graph is refused: see `Witness` and `_reading`.
"""

import operator
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import inplace_methods

from .answers import Answers, Copies, Path, kind_of, read
from .readers import UnusualError
from .watching import autocast_on_every_device, settings
from .witness import Witness

_one_at_a_time = threading.Lock()


class Followed(NamedTuple):
    """A forward that was followed."""

    graph: fx.Graph
    answers: Answers


def follow(
    module: nn.Module, names: list[str], kind: type, inline: frozenset[Path]
) -> tuple[Followed, bool]:
    """The forward of `module` in its present mode, given its required arguments alone.

    Args:
        names: of these arguments.
        kind: of the first of them, Tensor or list; all others are tensors.
        inline: the parts whose own forwards are followed as well, which must work plainly.

    Returns:
        The graph, and whether the forward asked of which class an argument is.

    Raises:
        UnusualError: it cannot be followed.
    """
    followed, asked = _followed(module, names, kind, inline)
    with autocast_on_every_device(), torch.set_grad_enabled(not torch.is_grad_enabled()):
        other, _ = _followed(module, names, kind, inline)
    if _steps(other.graph) != _steps(followed.graph) or other.answers != followed.answers:
        raise UnusualError("its forward depends on autocast or the recording of gradients")
    return followed, asked


def _steps(graph: fx.Graph) -> list[tuple[str, ...]]:
    return [(str(n), n.op, str(n.target), str(n.args), str(n.kwargs)) for n in graph.nodes]


def _followed(
    module: nn.Module, names: list[str], kind: type, inline: frozenset[Path]
) -> tuple[Followed, bool]:
    found: list[str] = []
    tracer = _Tracer(module, names, kind, inline, found)
    numbers = torch.get_rng_state().tolist()
    try:
        with _reading(tracer):
            graph = tracer.trace(module)
    except UnusualError as error:
        raise UnusualError([*found, str(error)][0]) from None
    except Exception as error:
        line = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UnusualError([*found, f"torch.fx cannot follow it: {line}"][0]) from None
    if torch.get_rng_state().tolist() != numbers:
        found.append("its forward draws random numbers")
    places = Counter(part for _, part in module.named_modules(remove_duplicate=False))
    for path in tracer.answers.kinds:
        if places[module.get_submodule(".".join(path))] > 1:
            found.append(f"it has {'.'.join(path)} under two names")
    for (path, name), value in tracer.answers.values.items():
        if tracer.copies.get((path, name), value) != value:
            found.append(f"its forward changes its attribute {'.'.join((*path, name))}")
    if found:
        raise UnusualError(found[0])
    return Followed(graph, tracer.answers), tracer.asked


class _StandIn(fx.Proxy):
    """torch.fx's stand-in for a tensor, which also says that it is one, and what is in place."""

    node: fx.Node
    tracer: "_Tracer"

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        # What isinstance() asks after the true class has not sufficed.
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.startswith(("torch.", "ran_kernels.fuse")):
            return type(self)
        if self.node.op != "placeholder":
            raise UnusualError("its forward asks of which class a result is")
        self.tracer.asked = True
        return self.tracer.kind if self.node.target == self.tracer.names[0] else Tensor

    def __getattr__(self, name: str) -> Any:
        first = self.node.op == "placeholder" and self.node.target == self.tracer.names[0]
        if not hasattr(self.tracer.kind if first else Tensor, name):
            raise UnusualError(f"its forward asks a tensor for {name}")
        return super().__getattr__(name)


def _in_place(name: str) -> Callable[[_StandIn, Any], Any]:
    # torch.fx would write down `x + y` for `x += y`, which somebody else's x does not feel.
    def method(self: _StandIn, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

    return method


for _name in inplace_methods.keys() - {"setitem"}:
    setattr(_StandIn, f"__{_name}__", _in_place(_name))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(
        self,
        module: nn.Module,
        names: list[str],
        kind: type,
        inline: frozenset[Path],
        found: list[str],
    ) -> None:
        super().__init__(autowrap_modules=())  # type: ignore[arg-type]
        self.names, self.kind, self.inline, self.found = names, kind, inline, found
        self.asked = False
        self.answers = Answers({}, {}, {((), "forward"): kind_of(module).forward})
        self.copies: Copies = {}
        self.paths: dict[nn.Module, Path] = {
            part: tuple(name.split(".")) if name else () for name, part in module.named_modules()
        }
        self.tensors = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
        self.reads = threading.local()
        self.settings = settings()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.paths[m] not in self.inline

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _StandIn(node, self)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        given = [self.create_proxy("placeholder", name, (), {}) for name in self.names]

        # A lambda: an annotated function would give the graph its annotations.
        return lambda *args: self._run(root_fn, args), [self.root, *given]

    def _run(self, forward: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        before, self.witness = sys.getprofile(), Witness(self.found, _Tracer._run.__code__)
        self.reads.on = True
        sys.setprofile(self.witness)
        try:
            result = forward(*args)
        finally:
            self.reads.on = False
            sys.setprofile(before)
        _require_known_containers(result)
        return result

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if settings() != self.settings:
            raise UnusualError("its forward sets autocast or the recording of gradients")
        return super().create_node(*args, **kwargs)

    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        with self.aside():
            return super().create_proxy(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and id(a) not in self.tensors:
            raise UnusualError("its forward makes a tensor of its own")
        with self.aside():
            return super().create_arg(a)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        with self.aside():
            return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if m not in self.paths or not self.paths[m]:
            raise UnusualError("its forward calls a module that is no part of it")
        self.answers.kinds[self.paths[m]] = kind_of(m)
        if self.paths[m] in self.inline:
            self.answers.values[self.paths[m], "forward"] = kind_of(m).forward
            return super().call_module(m, forward, args, kwargs)
        with self.aside():
            return super().call_module(m, forward, args, kwargs)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """For what the tracer, and not the forward, reads and calls."""
        before, self.reads.on = getattr(self.reads, "on", False), False
        if before:
            sys.setprofile(None)
        try:
            yield
        finally:
            self.reads.on = before
            if before:
                sys.setprofile(self.witness)


def _require_known_containers(result: Any) -> None:
    # torch.fx makes a dict of every kind of dict.
    if isinstance(result, (tuple, list, dict)):
        if type(result) not in (tuple, list, dict) and not hasattr(result, "_fields"):
            raise UnusualError(f"its forward returns a {type(result).__name__}")
        for item in result.values() if isinstance(result, dict) else result:
            _require_known_containers(item)


@contextmanager
def _reading(tracer: _Tracer) -> Iterator[None]:
    """Writes down which attributes of modules are read, and refuses those that are written."""
    set_attribute = nn.Module.__setattr__

    def on() -> bool:
        return getattr(tracer.reads, "on", False)  # of this thread: others may be at work

    def get(module: nn.Module, name: str) -> Any:
        asked = on() and not name.startswith("__") and module in tracer.paths
        if not asked or sys._getframe(1).f_globals.get("__name__") == "torch.fx._symbolic_trace":
            return object.__getattribute__(module, name)
        with tracer.aside():
            return read(tracer.answers, tracer.copies, tracer.paths[module], module, name)

    def put(module: nn.Module, name: str, value: Any) -> None:
        if on():
            raise UnusualError(f"its forward sets the attribute {name}")
        set_attribute(module, name, value)

    kind: Any = nn.Module
    with _one_at_a_time:
        kind.__getattribute__, kind.__setattr__ = get, put
        try:
            yield
        finally:
            del kind.__getattribute__
            kind.__setattr__ = set_attribute
