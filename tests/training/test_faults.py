"""Every file operation of a training, killed, half done or failed: no bit of before is lost."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorboard")  # whose files are among those that fail

SOURCE = Path(__file__).with_name("faults.c")
SAVING = ("last", "first", "best", "overwrite", "new", "network", "log")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if not compiler or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    built = tmp_path_factory.mktemp("faults") / "faults.so"
    options = ["-O1", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *options, "-o", built, SOURCE, "-ldl"], check=True)
    return built


def lost(library: Path, folder: Path, scenarios: tuple[str, ...], most: int, seed: int) -> str:
    """What ``tests.training.faulty`` prints, which must name every scenario and nothing lost."""
    command = [sys.executable, "-m", "tests.training.faulty", library, folder]
    ended = subprocess.run(
        [*map(str, command), ",".join(scenarios), str(most), str(seed)],
        env={**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    print(ended.stdout)
    said = re.findall(r"^(\w+): (\d+) cases at (\d+) file operations", ended.stdout, re.MULTILINE)
    assert [name for name, *_ in said] == list(scenarios)
    assert all(int(cases) > 0 and int(operations) > 5 for _, cases, operations in said)
    return "".join(line for line in ended.stdout.splitlines(True) if "LOST" in line)


def test_a_share_of_the_faults_in_saving(library: Path, tmp_path: Path) -> None:
    assert not lost(library, tmp_path, SAVING, 12, 0)


@pytest.mark.faults
@pytest.mark.parametrize("scenario", SAVING)
def test_every_fault_in_saving(scenario: str, library: Path, tmp_path: Path) -> None:
    assert not lost(library, tmp_path, (scenario,), 10**9, 0)


@pytest.mark.faults
def test_faults_in_a_training_that_is_resumed_to_the_same_bits(
    library: Path, tmp_path: Path
) -> None:
    seed = int.from_bytes(os.urandom(2), "big")  # it is printed
    assert not lost(library, tmp_path, ("training",), 100, seed)
