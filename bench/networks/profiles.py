"""What a call of a network does: what takes its time, and how many kernels it launches."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch._inductor.graph import GraphLowering
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity

#: Profiled calls, of which the fastest counts: on a shared machine one call says little.
CALLS = 3
#: Operations named in a result; the others are one sum.
NAMED = 30
#: What the names of operations begin with that an optimizer calls.
OPTIMIZER = "optimizer: "
_GENERATED = re.compile(r"^ +cpp_fused\w*\(", re.MULTILINE)

#: Kinds of operation, by what a name contains; the first that matches counts.
KINDS = (
    ("optimizer", re.compile(f"{OPTIMIZER}|Optimizer")),
    ("convolution backward", re.compile("convolution_backward|ConvolutionBackward")),
    ("convolution forward", re.compile("conv")),
    ("normalisation", re.compile("batch_?norm|instance_?norm|norm_stats", re.IGNORECASE)),
    ("attention operators", re.compile("ran::|_ran_|^_Block")),
    ("pooling, upsampling", re.compile("pool|upsample|scatter")),
    ("linear", re.compile("linear|addmm|::mm$|matmul|LinearBackward|AddmmBackward")),
    (
        "compiled graph",
        re.compile("Compiled|triton_|of no operator|TorchDynamo|AOTDispatcher|Pregraph"),
    ),
    (
        "element-wise, reductions",
        re.compile(
            "::_?(relu|clamp|threshold|mul|add|sub|div|neg|rsqrt|sqrt|pow|sigmoid|exp|log|sum|mean|"
            "max|amax|eq|where|masked|copy|to_copy|fill|zero|cat|stack|value_selecting)[a-z_]*$"
        ),
    ),
)
#: The allocator, the dispatcher, autograd, the loss, and what is too short to be named.
OTHER = "other"


def kind(name: str) -> str:
    """The kind of an operation, one of ``KINDS`` or ``OTHER``."""
    return next((kind for kind, pattern in KINDS if pattern.search(name)), OTHER)


class Generated:
    """Counts the calls of kernels that Inductor generates for the CPU, which no profile shows.

    Attributes:
        calls: in the code that was compiled within ``watching``, that is, for a forward and a
            backward pass.
    """

    def __init__(self) -> None:
        self.calls = 0

    def _count(self, code: str) -> None:
        self.calls += len(_GENERATED.findall(code))

    @contextmanager
    def watching(self) -> Iterator[None]:
        with mock.patch.object(GraphLowering, "save_output_code", self._count):
            yield


def profile(run: Callable[[], Any], device: str, generated: int) -> dict[str, Any]:
    """Where the time of a call goes, and how much it launches.

    Returns a dict with

    - "operations": dicts with "name", "calls" and "ms", the own time of an operator without what
      it calls, on a GPU of the kernels that it launched; those that take most, then "others";
    - "launches": on a GPU, the kernels that ran, copies and fills included. On the CPU, which
      launches nothing, the operators dispatched that call no other operator, views and allocations
      included, plus the `generated` calls of Inductor's kernels.
    """
    best: list[FunctionEvent] = []
    for _ in range(CALLS):
        activities = [ProfilerActivity.CPU]
        if device == "cuda":
            activities.append(ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profiler:
            run()
            if device == "cuda":
                torch.cuda.synchronize()
        events = list(profiler.events())
        if not best or _total(events, device) < _total(best, device):
            best = events
    launches = generated
    if device == "cuda":
        launches = len(_kernels(best))
    else:
        launches += sum(_is_leaf(event) for event in best)
    return {"operations": _operations(best, device), "launches": launches}


def _operations(events: list[FunctionEvent], device: str) -> list[dict[str, Any]]:
    calls: dict[str, int] = defaultdict(int)
    microseconds: dict[str, float] = defaultdict(float)
    for event in events:
        if event.device_type == DeviceType.CPU:
            name = re.sub(r"(CompiledFxGraph) \w+", r"\1", event.name)
            name = (OPTIMIZER if _in_optimizer(event) else "") + name
            calls[name] += 1
            microseconds[name] += _own(event, device)
    if device == "cuda":
        # A CUDA graph's kernels, for one, belong to no operator.
        rest = _total(events, device) - sum(microseconds.values())
        calls["kernels of no operator"], microseconds["kernels of no operator"] = 1, max(0.0, rest)
    names = sorted(microseconds, key=lambda name: -microseconds[name])
    rows: list[dict[str, Any]] = [
        {"name": name, "calls": calls[name], "ms": round(microseconds[name] / 1e3, 4)}
        for name in names
    ]
    rest_of = rows[NAMED:]
    others = {
        "name": "others",
        "calls": sum(row["calls"] for row in rest_of),
        "ms": round(sum(row["ms"] for row in rest_of), 4),
    }
    return [*rows[:NAMED], others]


def _own(event: FunctionEvent, device: str) -> float:
    return float(event.self_device_time_total if device == "cuda" else event.self_cpu_time_total)


def _total(events: list[FunctionEvent], device: str) -> float:
    if device == "cuda":
        return sum(event.time_range.elapsed_us() for event in _kernels(events))
    return sum(event.self_cpu_time_total for event in events)


def _kernels(events: list[FunctionEvent]) -> list[FunctionEvent]:
    return [e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]


def _is_leaf(event: FunctionEvent) -> bool:
    name: str = event.name
    return "::" in name and not any("::" in child.name for child in event.cpu_children)


def _in_optimizer(event: FunctionEvent) -> bool:
    above = event.cpu_parent
    while above is not None:
        if above.name.startswith("Optimizer."):
            return True
        above = above.cpu_parent
    return False
