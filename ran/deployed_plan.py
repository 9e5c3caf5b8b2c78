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

import ran_kernels

#: Shapes that plans are kept for; further ones go through the modules.
MOST_PLANS = 4


class _Recorder(TorchDispatchMode):
    """Writes every operator that is called below autograd, with its arguments, into a graph."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        # A tensor's id names it only as long as it lives.
        self._known = {id(x): (x, self.graph.placeholder("x"))}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        node = self.graph.call_function(func, *tree_map_only(Tensor, self.node_of, (args, kwargs)))
        if isinstance(result, Tensor):
            self._know(result, node)
        elif isinstance(result, tuple | list):
            for index, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._know(part, self.graph.call_function(operator.getitem, (node, index)))
        return result

    def node_of(self, value: Tensor) -> fx.Node:
        """What gives `value`: the call that did, or a constant of the network."""
        if id(value) not in self._known:
            name = f"constant{len(self.constants)}"
            self.constants[name] = value
            self._know(value, self.graph.get_attr(name))
        return self._known[id(value)][1]

    def _know(self, value: Tensor, node: fx.Node) -> None:
        # Of an operator that writes into its argument, the result is that tensor from here on.
        self._known[id(value)] = (value, node)


def record(network: nn.Module, x: Tensor) -> fx.GraphModule:
    """The calls of `network` on images like x, as a module that makes them without `network`."""
    with _Recorder(x) as recorder:
        out = network(x)
    recorder.graph.output(recorder.node_of(out))
    return fx.GraphModule(recorder.constants, recorder.graph)


class Plans:
    """The plans of one network, made as shapes come.

    Several threads may call it. It holds what the network held when a plan was made: whoever
    changes weights makes a new one.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._layers = list(network.modules())
        self._plans: dict[tuple[Any, ...], fx.GraphModule] = {}
        self._lock = threading.Lock()

    def __call__(self, x: Tensor) -> Tensor:
        """What the network gives for x."""
        if not self._may_plan(x):
            return self._network(x)
        key = (x.shape, x.stride(), ran_kernels.backends.current())
        plan = self._plans.get(key)
        if plan is None:
            with self._lock:
                if key not in self._plans and len(self._plans) >= MOST_PLANS:
                    return self._network(x)
                if key not in self._plans:
                    self._network(x)  # packs the weights for this shape, which is no part of it
                    self._plans[key] = record(self._network, x)
                plan = self._plans[key]
        # No gradients here: autograd's part of each operator's call has nothing to do.
        with torch._C._AutoDispatchBelowAutograd():
            return plan(x)

    def _may_plan(self, x: Tensor) -> bool:
        """Whether nobody looks on who wants to see the modules, or changes what operators do."""
        return (
            type(x) is Tensor
            and x.numel() > 0
            and not torch.is_autocast_enabled(x.device.type)
            and _get_current_dispatch_mode() is None
            and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in self._layers)
        )
