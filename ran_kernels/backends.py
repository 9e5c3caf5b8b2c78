"""Which implementation of an operator runs, and why another was refused.

Three backends stand behind every operator:

- ``native``: the compiled extension, C++ on the CPU and CUDA C++ on NVIDIA GPUs (`conv_gate` and
  `norm_relu_conv` have no kernels there);
- ``triton``: Triton on NVIDIA GPUs, and on CPU tensors in its interpreter (TRITON_INTERPRET=1);
- ``reference``: plain PyTorch, on every device.

``auto`` takes the first of them that can run, except that nobody wants the interpreter's speed:
on the CPU it takes the extension or the reference. Under torch.func's transforms and forward-mode
differentiation it takes the reference: the kernels have derivatives in reverse mode alone. Inside
torch.compile it takes the reference too where Inductor's fusion of it measured faster than the
kernel, which Inductor cannot look into.
"""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import extension, library
from .checks import require_choice

ORDER = ("native", "triton", "reference")
NAMES = ("auto", *ORDER)
#: The oldest GPU the native kernels and Triton are built for.
OLDEST_GPU = (8, 0)
#: Kinds of operator, by device, that Inductor fuses better; figures in bench/results/README.md.
FUSED_BETTER = {"cpu": frozenset({"attention_gate[spatial]"})}


class BackendError(RuntimeError):
    """A backend was asked for that cannot run this operator on these tensors."""


def _native(op: str, *tensors: Tensor) -> str | None:
    if op in library.TRITON_ALONE:
        return f"{op} has no native kernel"
    if extension.path is None:
        return extension.why_not
    device = tensors[0].device
    if device.type == "cpu":
        return transformed()
    if device.type != "cuda":
        return f"no native kernels for device type {device.type!r}"
    if not extension.has_cuda():
        if not torch.compiler.is_compiling():
            extension.warn_of_no_cuda()
        return f"the extension was built without CUDA ({extension.build_info()['cuda_reason']})"
    return _too_old(device) or transformed()


def _triton(op: str, *tensors: Tensor) -> str | None:
    if not _TRITON_INSTALLED:
        return "triton is not installed"
    device = tensors[0].device
    if device.type == "cpu":
        if not _interpreting():
            return "Triton runs CPU tensors with TRITON_INTERPRET=1 only"
        return transformed()
    if device.type != "cuda":
        return f"no Triton kernels for device type {device.type!r}"
    return _too_old(device) or transformed()


def _reference(op: str, *tensors: Tensor) -> str | None:
    return None


#: One predicate a backend: None where it can run the operator on these tensors, else the reason.
PREDICATES: dict[str, Callable[..., str | None]] = {
    "native": _native,
    "triton": _triton,
    "reference": _reference,
}


def can_run(backend: str, op: str, *tensors: Tensor) -> str | None:
    """None where `backend` can run the operator `op` on these tensors, else the reason why not.

    Raises:
        ValueError: the backend is not one of "native", "triton", "reference".
    """
    require_choice("backend", backend, ORDER)
    return PREDICATES[backend](op, *tensors)


def choose(op: str, *tensors: Tensor, kind: str | None = None) -> str:
    """The backend that runs the operator `op` on these tensors: "native", "triton" or "reference".

    Args:
        kind: how the benchmarks name the operator as it is called here; `op` if None.

    Raises:
        BackendError: the backend asked for cannot run it; the message says why.
    """
    if _wanted == "auto":
        device = tensors[0].device.type
        fused_better = (kind or op) in FUSED_BETTER.get(device, ())
        if fused_better and torch.compiler.is_dynamo_compiling():
            return "reference"
        for name in ORDER:
            slow = name == "triton" and device == "cpu"
            if not slow and PREDICATES[name](op, *tensors) is None:
                break
        return name
    reason = PREDICATES[_wanted](op, *tensors)
    if reason is not None:
        raise BackendError(f"backend: {_wanted!r} cannot run {op}: {reason}")
    return _wanted


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Within the ``with`` block, the process's operators run on the backend `name`.

    Like the switches of `torch.backends`, this holds for all threads: a context variable would hold
    for one, but torch.compile cannot trace it in every supported version.

    Args:
        name: "auto", "native", "triton" or "reference". The environment variable RAN_BACKEND sets
            what holds outside any block.

    Raises:
        ValueError: `name` is none of these.
    """
    require_choice("backend", name, NAMES)
    global _wanted
    before, _wanted = _wanted, name
    try:
        yield
    finally:
        _wanted = before


def current() -> str:
    """The backend asked for at this point of the program, "auto" unless somebody said otherwise."""
    return _wanted


def _from_environment() -> str:
    name = os.environ.get("RAN_BACKEND", "auto")
    require_choice("RAN_BACKEND", name, NAMES)
    return name


_wanted = _from_environment()
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


# Dynamo cannot trace a query of the driver, and its answer never changes.
@torch.compiler.assume_constant_result
def _capability(index: Any) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def _too_old(device: torch.device) -> str | None:
    capability = _capability(device.index)
    if capability < OLDEST_GPU:
        oldest = ".".join(map(str, OLDEST_GPU))
        return f"compute capability {'.'.join(map(str, capability))} is older than {oldest}"
    return None


def transformed() -> str | None:
    """None outside torch.func's transforms and forward-mode differentiation, else a sentence."""
    # PyTorch drops the tangents of an operator that has no forward-mode derivative without a word:
    # jvp would come out as 0. Neither question can be traced, and neither arises within a trace.
    if torch.compiler.is_compiling():
        return None
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "torch.func's transforms and forward-mode differentiation need the reference"
    return None


# Asked by Dynamo itself, torch 2.11 answers that torch.compile is an export.
@torch.compiler.assume_constant_result
def exporting() -> bool:
    """Whether torch.export or torch.jit.trace, and not torch.compile, traces this call.

    Neither's graph can be saved with a node of Python's in it.
    """
    return torch.compiler.is_exporting() or torch.jit.is_tracing()
