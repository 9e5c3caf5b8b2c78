"""Random calls of every operator; a share here, 20,000 and the sanitizers by `make fuzz`."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ran_kernels
from tests.test_build import copy_of_the_sources

from . import fuzz

ROOT = Path(__file__).parents[2]
#: Dividing by zero is defined for floats.
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize=vptr,float-divide-by-zero"


@pytest.fixture(autouse=True)
def _without_poison() -> None:
    torch.use_deterministic_algorithms(False)  # the gaps between elements hold NaN already


def test_scattered_tensors_hold_the_same_values_on_strides_of_every_kind() -> None:
    t = torch.arange(120.0).reshape(2, 3, 4, 5)
    strides, repeated = set(), 0
    for number in range(200):
        found = fuzz.scattered(t, np.random.default_rng(number))
        if torch.equal(found, t):
            strides.add(found.stride())
        else:
            repeated += 1
    assert len(strides) > 100
    assert 5 < repeated < 50


def test_a_share_of_the_random_calls() -> None:
    for number in range(150):  # the same every time: the others are `make fuzz`'s
        fuzz.run(1, number)


def test_a_wrong_result_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ran_kernels.channel_pool
    monkeypatch.setattr(ran_kernels, "channel_pool", lambda x: right(x * 1.001))
    monkeypatch.setattr(fuzz, "NAMES", ["channel_pool"])
    monkeypatch.setattr(fuzz, "DTYPES", [torch.float32])
    with pytest.raises(AssertionError, match=r"seed 3, case 5: channel_pool of .*float32"):
        fuzz.run(3, 5)


@pytest.mark.fuzz
def test_all_the_random_calls() -> None:
    command = [sys.executable, "-m", "tests.kernels.fuzz", "--cases", "20000"]
    assert subprocess.run(command, cwd=ROOT).returncode == 0


@pytest.mark.fuzz
@pytest.mark.skipif(platform.system() != "Linux", reason="the sanitizers are preloaded as on Linux")
@pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")
def test_the_sanitizers_find_nothing_in_the_cpu_kernels() -> None:
    """The extension as users build it, with AddressSanitizer and UndefinedBehaviorSanitizer."""
    folder = ROOT / "build" / "sanitized"  # kept: the next time compiles what changed
    environment = {**os.environ, "RAN_CUDA": "0", "CFLAGS": SANITIZERS, "LDFLAGS": SANITIZERS}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder)]
    command += ["--build-temp", str(folder / "objects")]
    subprocess.run(command, cwd=ROOT, check=True, env=environment)
    copy_of_the_sources(folder / "ran_kernels")
    for package in ("tests", "csrc"):
        link = folder / package
        link.unlink(missing_ok=True)
        link.symlink_to(ROOT / package)
    libraries = [
        subprocess.run(
            ["g++", f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("asan", "ubsan")
    ]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.kernels.fuzz", "--cases", "3000"],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(folder),
            "LD_PRELOAD": " ".join(libraries),
            # torch and Python do not free everything at their end
            "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        },
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-4000:]
    assert re.search("3000 right, 0 wrong", ended.stdout)
