"""Kernels cost what they did: instructions on the CPU, registers and memory on GPUs.

Timings never decide a test. These figures do not depend on what else a machine does.
"""

from typing import Any

import pytest

from ran_kernels import extension

from . import measure


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


def test_a_difference_shows() -> None:
    then = {"a": 100, "b": {"registers": 40}, "gone": 1}
    assert differences({"a": 104, "b": {"registers": 41}, "gone": 1}, then) == []
    assert differences({"a": 106, "b": {"registers": 48}, "new": 1}, then) == [
        "new: not in the baseline",
        "gone: only in the baseline",
        "a: instructions 100 -> 106",
        "b: registers 40 -> 48",
    ]
