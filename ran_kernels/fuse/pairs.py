"""Finds, in a module's graph, batch normalisation with its ReLU and the sums around it."""

import operator
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..parts import is_called_plainly
from . import calls
from .following import Path

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_SUMS_IN_PLACE = (operator.iadd, "add_")
#: Whose results are nobody else's tensor.
_FRESH = (nn.modules.conv._ConvNd, nn.Linear)


class Found(NamedTuple):
    """What a graph has, and what became of it."""

    fused: list[str]
    """In the order in which they are computed: the parts' names, as in ``bn1+relu``."""
    left: list[str]
    """Why others were left."""
    exact: list[Path]
    """The parts of the fused ones, each of which must stay of its very class."""


def fuse_pairs(graph: fx.Graph, module: nn.Module) -> Found:
    """Rewrites `graph`, of the forward of `module`, in place."""
    found = _Search(graph, module)
    for node in list(graph.nodes):
        if found.is_relu(node):
            found.look_at(node)
    return Found(found.fused, found.left, sorted(found.exact))


class _Search:
    def __init__(self, graph: fx.Graph, module: nn.Module) -> None:
        self.graph, self.module = graph, module
        self.place = {node: index for index, node in enumerate(graph.nodes)}
        self.fused: list[str] = []
        self.left: list[str] = []
        self.exact: set[Path] = set()

    def part(self, node: fx.Node) -> nn.Module | None:
        """What `node` calls."""
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def is_relu(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return type(self.part(node)) is nn.ReLU and len(node.all_input_nodes) == 1
        one = len(node.args) == 1 and isinstance(node.args[0], fx.Node)
        return _calls(node, _RELUS) and one and node.kwargs.keys() <= {"inplace"}

    def is_norm(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return type(self.part(node)) in NORMS and len(node.args) == 1 and not node.kwargs
        return node.op == "call_function" and node.target is F.batch_norm and bool(node.args)

    def look_at(self, relu: fx.Node) -> None:
        """Fuses what ends in `relu`, if it is one of the known forms."""
        chain = [relu, *self._through_identities(_input(relu))]
        last = chain[-1]
        if self.is_norm(last):
            total = last.args[0]
            assert isinstance(total, fx.Node)
            if last.op == "call_module" and _calls(total, _SUMS):
                if self._may_fuse(chain) and not self._fuse_after_sum(total, last, chain):
                    self._fuse_alone(last, chain)
            elif self._may_fuse(chain):
                self._fuse_alone(last, chain)
        elif _calls(last, _SUMS) and len(last.args) == 2 and not last.kwargs:
            for side in (0, 1):
                operand = last.args[side]
                if isinstance(operand, fx.Node):
                    longer = [*chain, *self._through_identities(operand)]
                    if self.is_norm(longer[-1]) and longer[-1].op == "call_module":
                        if self._may_fuse(longer) and self._fuse_before_sum(last, side, longer):
                            return

    def _through_identities(self, node: fx.Node) -> Iterator[fx.Node]:
        yield node
        while type(self.part(node)) is nn.Identity and len(node.all_input_nodes) == 1:
            node = _input(node)
            yield node

    def _may_fuse(self, chain: list[fx.Node]) -> bool:
        """Whether the parts work plainly, and their results on the way are for one another."""
        norm = _name(chain[-1])
        for node in chain:
            if node.op == "call_module" and not is_called_plainly(self.part(node)):  # type: ignore[arg-type]
                self.left.append(f"{node.target} has hooks or another forward")
                return False
        for node in chain[1:]:
            if len(node.users) > 1:
                self.left.append(f"the result of {norm} is used before the ReLU, too")
                return False
        return True

    def _fuse_alone(self, norm: fx.Node, chain: list[fx.Node]) -> None:
        with self.graph.inserting_before(norm):
            if norm.op == "call_module":
                made = self._call(calls.norm_relu, norm, norm.args[0])
            else:
                made = self.graph.call_function(calls.batch_norm_relu, norm.args, norm.kwargs)
        self._replace(chain, made, f"{_name(norm)}+{_name(chain[0])}")

    def _fuse_before_sum(self, total: fx.Node, side: int, chain: list[fx.Node]) -> bool:
        norm, shortcut = chain[-1], total.args[1 - side]
        x = norm.args[0]
        assert isinstance(x, fx.Node)
        in_place = _calls(total, _SUMS_IN_PLACE)
        if not isinstance(shortcut, fx.Node) or shortcut in chain:
            return False
        if in_place and side == 1:
            self.left.append(f"{_name(norm)} is added in place to another tensor")
            return False
        # The normalisation moves to the sum: nothing may write into its input until then.
        between = set(self.graph.nodes) - set(chain)
        waiting = any(self._index(norm) < self._index(node) < self._index(total)
                      for node in between)  # fmt: skip
        if waiting and not (len(x.users) == 1 and isinstance(self.part(x), _FRESH)):
            self.left.append(f"what {_name(norm)} normalises may change before the sum")
            return False
        with self.graph.inserting_before(total):
            made = self._call(calls.norm_add_relu, norm, x, shortcut, in_place)
        self._replace(chain, made, f"{_name(norm)}+shortcut+{_name(chain[0])}")
        return True

    def _fuse_after_sum(self, total: fx.Node, norm: fx.Node, chain: list[fx.Node]) -> bool:
        nodes = all(isinstance(arg, fx.Node) for arg in total.args)
        if len(total.args) != 2 or not nodes or total.kwargs or _calls(total, _SUMS_IN_PLACE):
            return False
        # The normalisation moves to the sum: nobody may write into the sum until then.
        if any(self._index(user) < self._index(norm) for user in total.users):
            return False
        with self.graph.inserting_before(total):
            both = self._call(calls.add_norm_relu, norm, *total.args)
            made = [self.graph.call_function(operator.getitem, (both, i)) for i in (0, 1)]
        self._replace(chain, made[1], f"sum+{_name(norm)}+{_name(chain[0])}")
        total.replace_all_uses_with(made[0])
        self.graph.erase_node(total)
        return True

    def _call(self, target: object, norm: fx.Node, *args: object) -> fx.Node:
        module = self.graph.get_attr(str(norm.target))
        return self.graph.call_function(target, (module, *args))  # type: ignore[arg-type]

    def _index(self, node: fx.Node) -> int:
        return self.place.get(node, -1)

    def _replace(self, chain: list[fx.Node], made: fx.Node, name: str) -> None:
        """Puts `made` in the place of the first of `chain`, and drops all of them."""
        self.fused.append(name)
        for node in chain:
            if node.op == "call_module":
                self.exact.add(tuple(str(node.target).split(".")))
        self.place[made] = self.place[chain[0]]
        chain[0].replace_all_uses_with(made)
        for node in chain:
            self.graph.erase_node(node)


def _calls(node: fx.Node, targets: tuple[object, ...]) -> bool:
    return node.op in ("call_function", "call_method") and node.target in targets


def _input(node: fx.Node) -> fx.Node:
    (given,) = node.all_input_nodes
    return given


def _name(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    return "norm" if node.target is F.batch_norm else "relu"
