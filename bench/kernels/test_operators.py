"""Every operator against eager PyTorch, torch.compile of the reference, and the memory floor."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.compare import Stopwatch, measure, peak_memory, require_close

from .cases import CASES, Case


def prepare(run: Any, inputs: list[Any], backward: bool) -> Any:
    """A call without arguments that does the forward, or the forward and the backward."""
    if not backward:

        def forward() -> Any:
            with torch.no_grad():
                return run(*inputs)

        return forward
    leaves = [t.detach().requires_grad_() for t in inputs]
    with torch.no_grad():
        grad = torch.randn_like(run(*inputs))

    def both() -> tuple[Tensor, ...]:
        out = run(*leaves)
        used = [leaf for leaf in leaves if leaf.requires_grad]
        return (out, *torch.autograd.grad(out, used, grad, allow_unused=True))

    return both


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
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
        pytest.skip("no floor of its own: its backward is a part of CBAM's")
    torch.manual_seed(0)
    big = torch.randn(batch, *stage, dtype=dtype, device=bench_device)
    if layout == "channels_last":
        big = big.contiguous(memory_format=torch.channels_last)
    inputs = case.inputs(big)
    backward = direction != "forward"
    torch._dynamo.reset()
    compiled = torch.compile(case.reference, fullgraph=True, dynamic=False)
    target = torch.empty_like(big)
    state = torch.get_rng_state()
    runs = {}
    for name, run in (("ours", case.ours), ("eager", case.reference), ("compile", compiled)):
        torch.set_rng_state(state)  # the same incoming gradient for all
        runs[name] = prepare(run, inputs, backward)
    want = runs["eager"]()
    for name in ("ours", "compile"):
        got = runs[name]()
        pairs = [(a, b) for a, b in zip(_flat(got), _flat(want), strict=True) if b is not None]
        require_close(name, [a for a, _ in pairs], [b for _, b in pairs], dtype)
        del got, pairs
    memory = {name: peak_memory(run, bench_device) for name, run in runs.items()}
    del want
    runs["copy"] = lambda: target.copy_(big)
    stopwatch = Stopwatch(bench_device)
    # pytest-benchmark times ours; before each of its rounds, `setup` times everybody in turn.
    collected: dict[str, list[float]] = {}

    def one_round() -> None:
        for name, samples in measure(runs, stopwatch, rounds=1, warmup=0).samples.items():
            collected.setdefault(name, []).extend(samples)

    def synchronised() -> None:
        runs["ours"]()
        if bench_device == "cuda":
            torch.cuda.synchronize()

    for _ in range(2):
        for run in runs.values():
            run()
    benchmark.pedantic(synchronised, setup=one_round, rounds=rounds)
    traffic = case.forward + (case.backward or 0 if backward else 0)
    benchmark.extra_info.update(
        op=case_name,
        stage=list(stage),
        batch=batch,
        dtype=str(dtype).removeprefix("torch."),
        layout=layout,
        direction=direction,
        device=bench_device,
        bytes=big.numel() * big.element_size(),
        floor_traffic=traffic,
        samples=collected,
        peak_bytes=memory,
    )


def _flat(result: Any) -> list[Tensor | None]:
    return [result] if isinstance(result, Tensor) else list(result)
