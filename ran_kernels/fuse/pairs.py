"""Finds, in a module's graph, batch normalisation with its ReLU and the sums around it."""

import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..parts import is_called_plainly
from . import calls
from .answers import Path, kind_of

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
    wanted: set[Path]
    """Parts that may end in a normalisation which belongs to a ReLU here."""


def fuse_pairs(graph: fx.Graph, module: nn.Module) -> Found:
    """Rewrites `graph`, of the forward of `module`, in place."""
    found = _Search(graph, module)
    for node in list(graph.nodes):
        if found.is_relu(node):
            found.look_at(node)
    return Found(found.fused, found.left, sorted(found.exact), found.wanted)


class _Search:
    def __init__(self, graph: fx.Graph, module: nn.Module) -> None:
        self.graph, self.module = graph, module
        self.place = {node: index for index, node in enumerate(graph.nodes)}
        self.fused: list[str] = []
        self.left: list[str] = []
        self.exact: set[Path] = set()
        self.wanted: set[Path] = set()

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
            if self._may_fuse(chain) and not self._fuse_after_sum(total, last, chain):
                self._fuse_alone(last, chain)
        elif _calls(last, _SUMS) and len(last.args) == 2 and not last.kwargs:
            for side in (0, 1):
                operand = last.args[side]
                if isinstance(operand, fx.Node):
                    longer = [*chain, *self._through_identities(operand)]
                    if self.is_norm(longer[-1]):
                        if self._may_fuse(longer) and self._fuse_before_sum(last, side, longer):
                            return
                    else:
                        self._want(longer[-1])
        else:
            self._want(last)

    def _want(self, node: fx.Node) -> None:
        """Notes the part that `node` calls, if its own forward may end in a normalisation."""
        part = self.part(node)
        if part is not None and len(node.args) == 1 and is_called_plainly(part) and may_end(part):
            self.wanted.add(tuple(str(node.target).split(".")))

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
            made = self._call(calls.norm_relu, calls.batch_norm_relu, norm)
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
        if self._are_apart(norm, total, chain):
            alone = all(user is norm or _asks_for_form(user) for user in x.users)
            if not (alone and isinstance(self.part(x), _FRESH)):
                self.left.append(f"what {_name(norm)} normalises may change before the sum")
                return False
            if not self._moves(norm):
                return False
        with self.graph.inserting_before(total):
            made = self._call(
                calls.norm_add_relu, calls.batch_norm_add_relu, norm, shortcut, in_place
            )
        self._replace(chain, made, f"{_name(norm)}+shortcut+{_name(chain[0])}")
        return True

    def _fuse_after_sum(self, total: object, norm: fx.Node, chain: list[fx.Node]) -> bool:
        if norm.op != "call_module" or not isinstance(total, fx.Node) or not _calls(total, _SUMS):
            return False
        nodes = all(isinstance(arg, fx.Node) for arg in total.args)
        if len(total.args) != 2 or not nodes or total.kwargs or _calls(total, _SUMS_IN_PLACE):
            return False
        # The normalisation moves to the sum: nobody may write into the sum until then.
        if any(self._index(user) < self._index(norm) for user in total.users):
            return False
        if self._are_apart(total, norm, chain) and not self._moves(norm):
            return False
        with self.graph.inserting_before(total):
            module = self.graph.get_attr(str(norm.target))
            both = self.graph.call_function(calls.add_norm_relu, (module, *total.args))
            made = [self.graph.call_function(operator.getitem, (both, i)) for i in (0, 1)]
        self._replace(chain, made[1], f"sum+{_name(norm)}+{_name(chain[0])}")
        total.replace_all_uses_with(made[0])
        self.graph.erase_node(total)
        return True

    def _are_apart(self, first: fx.Node, last: fx.Node, chain: list[fx.Node]) -> bool:
        """Whether something is computed between these two besides the rest of `chain`."""
        places = range(self._index(first) + 1, self._index(last))
        return any(self._index(n) in places for n in self.graph.nodes if n not in chain)

    def _moves(self, norm: fx.Node) -> bool:
        """Whether nothing else in the graph reads or writes what `norm` does."""
        given = [node for node in norm.all_input_nodes if node.op == "get_attr"]
        own = {id(t) for node in (norm, *given) for t in self._tensors(node)}
        if any(len(node.users) > 1 for node in given) or any(
            id(t) in own for n in self.graph.nodes if n not in (norm, *given)
            for t in self._tensors(n)
        ):  # fmt: skip
            self.left.append(f"what {_name(norm)} holds is used elsewhere, too")
            return False
        return True

    def _tensors(self, node: fx.Node) -> Iterator[object]:
        """The parameters and buffers that `node` is, or calls."""
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            held = getattr(self.module.get_submodule(owner), name)
        else:
            held = self.part(node)
        if isinstance(held, nn.Module):
            yield from (*held.parameters(), *held.buffers())
        elif held is not None:
            yield held

    def _call(self, of_module: Any, of_tensors: Any, norm: fx.Node, *more: Any) -> fx.Node:
        if norm.op == "call_module":
            module = self.graph.get_attr(str(norm.target))
            return self.graph.call_function(of_module, (module, norm.args[0], *more))
        return self.graph.call_function(of_tensors, (*more, *norm.args), norm.kwargs)

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


def _asks_for_form(node: fx.Node) -> bool:
    """Whether `node` asks a tensor for its shape or kind, and nothing else."""
    names = ("shape", "ndim", "dtype", "device", "size", "dim")
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in names
    return node.op == "call_method" and node.target in names


def has_own_forward(module: nn.Module) -> bool:
    """Whether `module` is made of others: its forward is none of PyTorch's layers'."""
    forward: Any = kind_of(module).forward
    known = str(forward.__module__).startswith(("torch.", "ran_kernels."))
    return not known or forward is nn.Sequential.forward


def may_end(part: nn.Module) -> bool:
    """Whether `part` may end in a normalisation: it has one, in parts of its own."""
    if isinstance(part, torch.jit.ScriptModule) or not has_own_forward(part):
        return False
    return sum(isinstance(one, _BatchNorm) for one in part.modules()) == 1


def _name(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    if node.target is not F.batch_norm:
        return "relu"
    owners = [
        str(arg.target).rpartition(".")[0] for arg in node.all_input_nodes if arg.op == "get_attr"
    ]
    return next(filter(None, owners), "norm")
