"""What a deployed network does for images of one shape, written down and done again.

A network's modules take time of their own between the operators: some 25 µs an operator, which is
8 % of Attention-56 on one image. A plan is the operators alone, one after another, each tensor let
go of as soon as nothing needs it, so that the next one takes its memory.
"""

import operator
import threading
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from ran_kernels import backends
from ran_kernels.parts import are_called_plainly

#: Shapes that plans and packed weights are kept for; further ones go through the modules, with the
#: plain weights, which oneDNN then packs at every call: 3 % of the time of most convolutions, a
#: quarter of that of a few.
MOST_SHAPES = 4

#: What is done for a shape and not for an image: its results are constants.
_ONCE = frozenset({torch.ops.mkldnn._reorder_convolution_weight.default})


class _Recorder(TorchDispatchMode):
    """Writes every operator that is called below autograd, with its arguments, into a graph."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        # Weakly, or all activations would live until the end.
        self._known = WeakTensorKeyDictionary({x: self.graph.placeholder("x")})

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ONCE:
            return func(*args, **kwargs)
        # Before the call: what it writes into is known by the call from then on.
        arguments = tree_map_only(Tensor, self.node_of, (args, kwargs))
        result = func(*args, **kwargs)
        node = self.graph.call_function(func, *arguments)
        if isinstance(result, Tensor):
            self._known[result] = node
        elif isinstance(result, tuple | list):
            for index, part in enumerate(result):
                if isinstance(part, Tensor):
                    getitem = self.graph.call_function(operator.getitem, (node, index))
                    self._known[part] = getitem
        return result

    def node_of(self, value: Tensor) -> fx.Node:
        """What gives `value`: the call that did, or a constant of the network."""
        if value not in self._known:
            name = f"constant{len(self.constants)}"
            self.constants[name] = value
            self._known[value] = self.graph.get_attr(name)
        node: fx.Node = self._known[value]
        return node


class Plan:
    """The calls of a graph as one function of x, compiled here: fx.GraphModule keeps the source of
    every one for ever, in a cache of its own and in linecache."""

    def __init__(self, graph: fx.Graph, constants: dict[str, Tensor]) -> None:
        code = graph.python_code("self")  # as its signature calls it
        scope = dict(code.globals)
        exec(compile(code.src, "<plan of a deployed network>", "exec"), scope)
        self._forward, self._constants = scope["forward"], SimpleNamespace(**constants)

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self._forward(self._constants, x)
        return out


def record(network: nn.Module, x: Tensor) -> tuple[Tensor, Plan]:
    """What `network` gives for x, and its calls as a plan that makes them without `network`."""
    with _Recorder(x) as recorder:
        out = network(x)
    recorder.graph.output(recorder.node_of(out))
    return out, Plan(recorder.graph, recorder.constants)


def may_keep(modules: list[nn.Module], x: Tensor) -> bool:
    """Whether what a network of these modules does for x may be done again without them.

    Not so where somebody looks on or steps in: through hooks, another forward, a dispatch mode,
    autocast, torch.func's transforms or forward-mode differentiation.
    """
    return (
        type(x) is Tensor
        and x.numel() > 0
        and not torch.is_autocast_enabled(x.device.type)
        and backends.transformed() is None
        and _get_current_dispatch_mode() is None
        and are_called_plainly(modules)
    )


def modules_of(network: nn.Module) -> list[nn.Module]:
    """As ``network.modules()``, in a tenth of its time, which every call would take."""
    found = [network]
    for module in found:  # which grows meanwhile
        found.extend(child for child in module._modules.values() if child is not None)
    return found


#: Tensors with memory of their own, not wrapped ones.
_PLAIN = (Tensor, nn.Parameter)


def is_watched(tensor: Tensor) -> bool:
    """Whether PyTorch counts how often it is written into: not where inference mode made it."""
    return type(tensor) in _PLAIN and not tensor.is_inference()


def marks_of(tensor: Tensor) -> tuple[int, int]:
    """Two numbers of which one is another once somebody has written into it.

    The second is its address, which another tensor's memory under it (`w.data = ...`) changes and
    the first does not. Writes through `w.data`, `w.numpy()` or a pointer change neither.
    """
    address = tensor.data_ptr() if type(tensor) in _PLAIN else 0
    return (0 if tensor.is_inference() else tensor._version), address


def tensors_of(modules: list[nn.Module]) -> list[Tensor]:
    """The parameters and buffers that the modules hold themselves."""
    return [
        tensor
        for module in modules
        for tensors in (module._parameters, module._buffers)
        for tensor in tensors.values()
        if tensor is not None
    ]


class Kept:
    """What was made for a network as it is, by key.

    It is dropped once a module or tensor of the network is another, or was written into as far as
    `marks_of` tells.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Any] = {}
        self._state: tuple[list[Any], list[tuple[int, int]]] = [], []
        self._lock = threading.Lock()

    def of(self, modules: list[nn.Module]) -> dict[tuple[Any, ...], Any]:
        """All of it, to look things up in and to add to; `modules` are the network's."""
        tensors = tensors_of(modules)
        things, marks = [*modules, *tensors], [marks_of(tensor) for tensor in tensors]
        with self._lock:
            before, marks_before = self._state
            same = len(things) == len(before) and all(map(operator.is_, things, before))
            if not same or marks != marks_before:
                self._kept, self._state = {}, (things, marks)
            return self._kept


class Plans:
    """The plans of one network, made as shapes come. Several threads may call it."""

    def __init__(self) -> None:
        self._kept = Kept()

    def __call__(self, modules: list[nn.Module], x: Tensor) -> Tensor:
        """What the network gives for x, which ``may_keep`` says yes to.

        `modules` are those of the network, always the same one, which comes first.
        """
        network = modules[0]
        plans = self._kept.of(modules)
        key = (x.shape, x.stride(), backends.current())
        plan = plans.get(key)
        if plan is not None:
            # No gradients here: autograd's part of each operator's call has nothing to do.
            with torch._C._AutoDispatchBelowAutograd():
                result: Tensor = plan(x)
            return result
        if len(plans) >= MOST_SHAPES or not all(map(is_watched, tensors_of(modules))):
            return network(x)
        out, plan = record(network, x)
        # Two threads may record the same; another may have changed the backend meanwhile.
        if backends.current() == key[-1] and len(plans) < MOST_SHAPES:
            plans.setdefault(key, plan)
        return out
