"""What a deployed network does for images of one shape, written down and done again.

A network's modules take time of their own between the operators: some 25 µs an operator, which is
8 % of Attention-56 on one image. A plan is the operators alone, one after another, each tensor let
go of as soon as nothing needs it, so that the next one takes its memory.
"""

import operator
import threading
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

#: Modules, and tensors with their versions: what a plan holds for.
State = list[tuple[nn.Module | Tensor, int]]


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


def record(network: nn.Module, x: Tensor) -> tuple[Tensor, fx.GraphModule]:
    """What `network` gives for x, and its calls as a module that makes them without `network`."""
    with _Recorder(x) as recorder:
        out = network(x)
    recorder.graph.output(recorder.node_of(out))
    return out, fx.GraphModule(recorder.constants, recorder.graph)


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


def version_of(tensor: Tensor) -> int:
    """Counts how often it was written into, where PyTorch does."""
    return 0 if tensor.is_inference() else tensor._version


def state_of(modules: list[nn.Module]) -> State:
    """The modules of a network and their tensors, as they are now."""
    state: State = []
    for module in modules:
        state.append((module, 0))
        for tensors in (module._parameters, module._buffers):
            state.extend((t, version_of(t)) for t in tensors.values() if t is not None)
    return state


class Kept:
    """What was made for a network as it is, by key.

    It is dropped once a module or tensor of the network is another, or was written into.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Any] = {}
        self._state: State = []
        self._lock = threading.Lock()

    def of(self, modules: list[nn.Module]) -> dict[tuple[Any, ...], Any]:
        """All of it, to look things up in and to add to; `modules` are the network's."""
        now = state_of(modules)
        with self._lock:
            same = len(now) == len(self._state) and all(
                a is b and version == before
                for (a, version), (b, before) in zip(now, self._state, strict=True)
            )
            if not same:
                self._kept, self._state = {}, now
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
        if len(plans) >= MOST_SHAPES:
            return network(x)
        out, plan = record(network, x)
        # Two threads may record the same; another may have changed the backend meanwhile.
        if backends.current() == key[-1] and len(plans) < MOST_SHAPES:
            plans.setdefault(key, plan)
        return out
