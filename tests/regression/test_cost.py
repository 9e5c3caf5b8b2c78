"""Kernels cost what they did: instructions on the CPU, registers, memory and its traffic on GPUs.

Timings never decide a test. These figures do not depend on what else a machine does.
"""

import math
from typing import Any

import pytest

from ran_kernels import extension
from tests.emulator import build

from . import measure, traffic


def differences(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """What differs from the baseline by more than it may, one line each."""
    found = [f"{name}: not in the baseline" for name in sorted(now.keys() - then.keys())]
    found += [f"{name}: only in the baseline" for name in sorted(then.keys() - now.keys())]
    for name in sorted(now.keys() & then.keys()):
        for key, (was, is_now) in _figures(then[name], now[name]).items():
            if abs(is_now - was) > measure.TOLERANCE * was:
                found.append(f"{name}: {key} {was} -> {is_now}")
    return found


def _figures(then: Any, now: Any) -> dict[str, tuple[int, int]]:
    if isinstance(then, int):
        return {"instructions": (then, now)}
    return {key: (was, now[key]) for key, was in then.items()}


def check(now: dict[str, Any], then: dict[str, Any]) -> None:
    found = differences(now, then)
    assert not found, "\n".join(
        ["if on purpose, python -m tests.regression.measure writes a new baseline:", *found]
    )


def test_instructions_of_the_cpu_kernels() -> None:
    if missing := measure.missing_for_instructions():
        pytest.skip(missing)
    check(measure.instructions(), measure.read_baseline("cpu"))


@pytest.mark.skipif(not extension.has_cuda(), reason="this build has no CUDA kernels")
def test_resources_of_the_cuda_kernels() -> None:
    now = measure.cuda_resources()
    then = {
        name: used
        for name, used in measure.read_baseline("cuda").items()
        if name.rpartition(", ")[2] in extension.build_info()["gpu_targets"]
    }
    check(now, then)


def test_chips_that_the_baseline_has_not_are_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {"registers": 40}
    kernels = {"a_kernel": dict.fromkeys(("sm_80", "sm_90", "sm_100", "sm_120"), used)}
    monkeypatch.setattr(extension, "build_info", lambda: {"kernels": kernels})
    assert measure.cuda_resources() == {"a_kernel, sm_80": used, "a_kernel, sm_90": used}


def test_a_difference_shows() -> None:
    then = {"a": 100, "b": {"registers": 40}, "gone": 1}
    assert differences({"a": 104, "b": {"registers": 41}, "gone": 1}, then) == []
    assert differences({"a": 106, "b": {"registers": 48}, "new": 1}, then) == [
        "new: not in the baseline",
        "gone: only in the baseline",
        "a: instructions 100 -> 106",
        "b: registers 40 -> 48",
    ]


def worsened(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Figures of memory traffic that are worse than the baseline's by more than they may be."""
    found = [f"{name}: not in the baseline" for name in sorted(now.keys() - then.keys())]
    for name in sorted(now.keys() & then.keys()):
        for key, was in then[name].items():
            is_now = now[name][key]
            if _cost(key, is_now) > _cost(key, was) * (1 + measure.TOLERANCE):
                found.append(f"{name}: {key} {was:g} -> {is_now:g}")
    return found


def _cost(key: str, value: float) -> float:
    """Of waves, the time that the last one makes: 1.1 waves take as long as 2."""
    return math.ceil(value) / value if key == "waves" else value


@pytest.mark.skipif(bool(build.missing()), reason=str(build.missing()))
@pytest.mark.parametrize(
    "batch",
    [
        pytest.param(batch, marks=pytest.mark.emulate if batch != traffic.BATCHES[0] else ())
        for batch in traffic.BATCHES
    ],
)
def test_memory_traffic_of_the_cuda_kernels(batch: int) -> None:
    then = measure.read_baseline("traffic")
    resources = measure.cuda_resources()
    rows = [row for row in traffic.rows() if row.batch == batch]
    now = {row.name: traffic.counted(row, resources) for row in rows}
    if not resources:
        for figures in now.values():
            del figures["waves"]  # they depend on registers, which this build has none of
        then = {name: {k: v for k, v in f.items() if k != "waves"} for name, f in then.items()}
    found = worsened(now, then)
    assert not found, "\n".join(
        ["if on purpose, python -m tests.regression.measure traffic renews the baseline:", *found]
    )


def test_worse_traffic_shows() -> None:
    then = {"a": {"asked": 1.0, "waves": 0.9}, "b": {"asked": 2.0, "waves": 2.0}}
    now = {"a": {"asked": 1.1, "waves": 1.1}, "b": {"asked": 1.0, "waves": 1.95}, "c": {}}
    assert worsened(now, then) == [
        "c: not in the baseline",
        "a: asked 1 -> 1.1",
        "a: waves 0.9 -> 1.1",
    ]
