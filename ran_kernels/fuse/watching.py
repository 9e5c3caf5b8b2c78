"""What a module's forward does besides computing its result: seen while it runs.

Values tell that two modules agree on the inputs that were tried. That they agree on all others
follows from how the module works: from operations that CBAM consists of, none of which asks for a
value, with no question after the input's size or kind, with nothing kept and no derivative of its
own.
"""

import sys
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

#: ATen operations that move or rename elements.
_MOVES = frozenset({
    "_reshape_alias", "_unsafe_view", "alias", "clone", "contiguous", "expand", "permute",
    "squeeze", "t", "transpose", "unsqueeze", "view",
})  # fmt: skip
#: ATen operations that CBAM consists of, in the forms it is written in.
_COMPUTES = frozenset({
    "_adaptive_avg_pool2d", "_batch_norm_no_update", "_batch_norm_with_update",
    "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "adaptive_max_pool2d",
    "add", "add_", "addmm", "amax", "avg_pool2d", "cat", "convolution", "cudnn_batch_norm",
    "linear", "max", "max_pool2d_with_indices", "mean", "miopen_batch_norm", "mm", "mul",
    "mul_", "native_batch_norm", "relu", "relu_", "sigmoid", "sigmoid_", "stack", "sum",
})  # fmt: skip
#: Those that PyTorch's own implementations add here and there, by device, layout and derivative.
_INCIDENTAL = _MOVES | {"_to_copy", "as_strided_", "detach", "empty", "resize_"}
#: What a forward may ask a tensor for without an operation following: sizes are watched on.
_SIZES = frozenset(("shape", "size", "numel", "nelement"))
_FREE = frozenset({
    "_assert", "contiguous", "dim", "expand", "expand_as", "flatten", "ndim", "ndimension",
    "reshape", "reshape_as", "squeeze", "view", "view_as",
})  # fmt: skip
#: Layers that ask their own buffers; their kinds are checked elsewhere.
_NORMS = ("torch.nn.modules.batchnorm", "timm.layers.norm_act")
#: Functions that pass a call on.
_BETWEEN = ("torch.overrides", "torch.nn.functional", "torch._jit_internal", "torch.functional",
            "torch._tensor", "torch._VF")  # fmt: skip


def watched(run: Callable[[Tensor], Any], x: Tensor) -> list[str]:
    """Why ``run(x)`` is no mere function of x made of CBAM's operations; empty if it is."""
    found: list[str] = []
    before = x.clone(), x._version
    with torch.no_grad(), _Operations(found) as operations, _Questions(found, operations) as asked:
        out = run(x)
    del out
    if any(result() is not None for result in asked.results):
        found.append("its forward keeps a result for somebody")
    if x._version != before[1] or not torch.equal(x, before[0]):
        found.append("its forward writes into its input")
    if found:
        return found
    out = run(x.detach().clone().requires_grad_())
    if isinstance(out, Tensor) and _has_own_derivative(out):
        found.append("its forward has a derivative of its own")
    return found


def operations_of(run: Callable[[Tensor], Any], x: Tensor) -> list[str]:
    """The names of the ATen operations of ``run(x)`` that compute, in their order."""
    with _Operations([]) as operations:
        run(x)
    return operations.names


def _has_own_derivative(out: Tensor) -> bool:
    nodes, seen = [out.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        # Derivatives written in Python, as those of torch.autograd.Function.
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return True
        nodes.extend(next_node for next_node, _ in node.next_functions)
    return False


class _Operations(TorchDispatchMode):
    """Lists the operations, and those that CBAM does not consist of as found."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found
        self.names: list[str] = []
        self.count = 0
        self.trusting = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        name = func.overloadpacket.__name__
        if name not in _INCIDENTAL:
            self.names.append(name)
        if not self.trusting and name not in _MOVES | _COMPUTES | {"empty"}:
            self.found.append(f"its forward calls {name}")
        return func(*args, **(kwargs or {}))


class _Questions(TorchFunctionMode):
    """Finds questions that no operation answers, and lists all results."""

    def __init__(self, found: list[str], operations: _Operations) -> None:
        super().__init__()
        self.found = found
        self.operations = operations
        self.results: list[weakref.ref[Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        getter = getattr(func, "__name__", "") == "__get__"
        name = func.__self__.__name__ if getter else getattr(func, "__name__", str(func))
        caller = _caller()
        count = self.operations.count
        self.operations.trusting = caller in _NORMS
        try:
            out = func(*args, **(kwargs or {}))
        finally:
            self.operations.trusting = False
        for result in out if isinstance(out, (tuple, list)) else (out,):
            # Not what an in-place operation gave back.
            if isinstance(result, Tensor) and not any(result is given for given in args):
                self.results.append(weakref.ref(result))
        if name in _SIZES:
            return _sizes(out, self.found)
        if self.operations.count == count and name not in _FREE and not _is_torchs(caller):
            self.found.append(f"its forward asks a tensor for {name}")
        return out


def _caller() -> str:
    """The Python module that called PyTorch, from within ``__torch_function__``."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__") in _BETWEEN:
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", ""))


def _is_torchs(name: str) -> bool:
    return name.startswith("torch.") or name in _NORMS


def _sizes(answer: Any, found: list[str]) -> Any:
    if not isinstance(answer, tuple):
        return _Size(answer, found)
    # A module is built for a number of channels, and may see to it.
    traced = [n if i == 1 else _Size(n, found) for i, n in enumerate(answer)]
    return torch.Size(traced)


class _Size(int):
    """An integer that notes when somebody compares it."""

    found: list[str]

    def __new__(cls, value: int, found: list[str]) -> "_Size":
        self = super().__new__(cls, value)
        self.found = found
        return self

    __hash__ = int.__hash__


def _arithmetic(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def run(self: _Size, *others: Any) -> Any:
        result = plain(self, *others)
        return _Size(result, self.found) if type(result) is int else result

    return run


def _comparison(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def run(self: _Size, *others: Any) -> Any:
        if not _is_torchs(str(sys._getframe(1).f_globals.get("__name__", ""))):
            self.found.append("its forward asks how large the input is")
        return plain(self, *others)

    return run


for _name in ("add", "sub", "mul", "floordiv", "mod", "pow", "lshift", "rshift"):
    for _side in ("", "r"):
        setattr(_Size, f"__{_side}{_name}__", _arithmetic(f"__{_side}{_name}__"))
for _name in ("neg", "abs"):
    setattr(_Size, f"__{_name}__", _arithmetic(f"__{_name}__"))
for _name in ("eq", "ne", "lt", "le", "gt", "ge", "bool"):
    setattr(_Size, f"__{_name}__", _comparison(f"__{_name}__"))


def state_of(module: nn.Module) -> dict[str, Any]:
    """What `module`, its parts and their classes hold besides tensors' values, to be compared."""
    state: dict[str, Any] = {}
    for name, part in module.named_modules():
        for attribute, value in vars(part).items():
            state[f"{name}.{attribute}".removeprefix(".")] = mark(value)
        for kind in type(part).__mro__:
            if not kind.__module__.startswith(("torch.", "builtins")):
                for attribute, value in vars(kind).items():
                    state[f"{kind.__name__}.{attribute}"] = mark(value)
    return state


def mark(value: Any, depth: int = 4) -> Any:
    """Equal before and after unless `value` was exchanged or something put into it."""
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None))):
        return repr(value)
    if depth == 0 or isinstance(value, (Tensor, nn.Module, type)) or callable(value):
        return id(value)
    if isinstance(value, Mapping):
        return [(mark(key, depth - 1), mark(item, depth - 1)) for key, item in value.items()]
    if hasattr(value, "__iter__") and hasattr(value, "__len__"):
        return type(value), [mark(item, depth - 1) for item in value]
    return id(value), mark(vars(value), depth - 1) if hasattr(value, "__dict__") else None
