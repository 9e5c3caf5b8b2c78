"""Every operator against eager PyTorch, torch.compile of the reference, and the memory floor."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.compare import Stopwatch, Turns, peak_memory, require_as_exact, rotation

from .cases import CASES, Case


def _listed(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


def prepare(run: Any, inputs: list[Any], grads: list[Tensor] | None) -> Any:
    """A call without arguments that does the forward, and with `grads` of its results the backward
    too."""
    if grads is None:

        def forward() -> Any:
            with torch.no_grad():
                return run(*inputs)

        return forward
    leaves = [t.detach().requires_grad_() for t in inputs]

    def both() -> tuple[Tensor | None, ...]:
        outs = _listed(run(*leaves))
        return (*outs, *torch.autograd.grad(outs, leaves, grads, allow_unused=True))

    return both


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_operator(
    benchmark: Any,
    case_name: str,
    stage: tuple[int, int, int],
    batch: int,
    dtype: torch.dtype,
    layout: str,
    direction: str,
    bench_device: str,
    rounds: int,
) -> None:
    case: Case = CASES[case_name]
    if direction != "forward" and case.backward is None:
        pytest.skip("no backward of its own: it is a part of CBAM's, or there is none")
    torch.manual_seed(0)
    numel = batch * math.prod(stage)
    # The inputs, and the results of ours and of those that take turns with it.
    sets = [
        case.inputs(_big(batch, stage, dtype, layout, bench_device))
        for _ in range(rotation(bench_device, 2 * numel * dtype.itemsize))
    ]
    backward = direction != "forward"
    torch._dynamo.reset()
    compiled = torch.compile(case.reference, fullgraph=True, dynamic=False)
    grads = [incoming(case, inputs) if backward else None for inputs in sets]
    ways = {"ours": case.ours, "eager": case.reference, "compile": compiled}
    runs = {
        name: [prepare(run, *given) for given in zip(sets, grads, strict=True)]
        for name, run in ways.items()
    }
    doubles = [t.double() for t in sets[0]]
    wide = None if grads[0] is None else [t.double() for t in grads[0]]
    exact = prepare(case.reference, doubles, wide)()
    own = runs["eager"][0]()
    require_as_exact("ours", runs["ours"][0](), own, exact)
    refused = None
    try:
        require_as_exact("compile", runs["compile"][0](), own, exact)
    except ValueError as error:  # torch.compile's fault, which has no speed; ours has
        refused = str(error)
        del runs["compile"]
    del doubles, wide, exact, own
    memory = {name: peak_memory(run[0], bench_device) for name, run in runs.items()}
    # What the machine can do with the big tensor: write it to memory that is there, and only read.
    big = [next(t for t in inputs if t.numel() == numel) for inputs in sets]
    targets = [torch.empty_like(t) for t in big]
    runs["copy"] = [partial(to.copy_, t) for to, t in zip(targets, big, strict=True)]
    runs["read"] = [t.sum for t in big]
    turns = Turns(runs, Stopwatch(bench_device))
    turns.warm_up(3)

    def synchronised() -> None:
        turns.next("ours")()
        if bench_device == "cuda":
            torch.cuda.synchronize()

    # pytest-benchmark times ours; before each of its rounds, `setup` times everybody in turn.
    benchmark.pedantic(synchronised, setup=turns.round, rounds=rounds)
    traffic = (
        case.forward + case.weights(stage[0]) / numel + (case.backward or 0 if backward else 0)
    )
    benchmark.extra_info.update(
        op=case_name,
        stage=list(stage),
        batch=batch,
        dtype=str(dtype).removeprefix("torch."),
        layout=layout,
        direction=direction,
        device=bench_device,
        bytes=numel * dtype.itemsize,
        floor_traffic=traffic,
        samples={name: [float(f"{s:.4g}") for s in v] for name, v in turns.samples.items()},
        peak_bytes=memory,
        **({"refused": refused} if refused else {}),
    )


def _big(
    batch: int, stage: tuple[int, int, int], dtype: torch.dtype, layout: str, device: str
) -> Tensor:
    big = torch.randn(batch, *stage, dtype=dtype, device=device)
    if layout == "channels_last":
        big = big.contiguous(memory_format=torch.channels_last)
    return big


def incoming(case: Case, inputs: list[Tensor]) -> list[Tensor]:
    """Gradients of the results."""
    with torch.no_grad():
        return [torch.randn_like(t) for t in _listed(case.reference(*inputs))]
