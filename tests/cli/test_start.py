"""How soon the command line answers: what needs no network loads no torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ran

#: What takes long to load, and nothing here needs.
HEAVY = {"torch", "timm", "lightning", "numpy", "matplotlib", "PIL"}


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console script ``ran``, as pip writes it."""
    path: Path = tmp_path_factory.mktemp("bin") / "ran"
    path.write_text("from ran.cli import main\nmain()\n")
    return path


def started(
    program: list[str], arguments: list[str], **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "importtime", *program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
    )


def imported(started: subprocess.CompletedProcess[str]) -> set[str]:
    lines = [line for line in started.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["train", "--list"], 0),
        (["predict", "--sizes"], 2),
        (["train", "digits", "--set", "lr=fast"], 2),
    ],
)
def test_what_needs_no_network_loads_none(arguments: list[str], code: int) -> None:
    ended = started(["-m", "ran"], arguments)
    assert ended.returncode == code, ended.stderr[-500:]
    assert "ran.cli" in imported(ended)
    assert not imported(ended) & HEAVY


def test_completion_loads_no_network(script: Path) -> None:
    words = {"COMP_WORDS": "ran eval runs --data cif", "COMP_CWORD": "4"}
    ended = started([str(script)], [], _RAN_COMPLETE="complete_bash", **words)
    assert ended.stdout.split() == ["cifar10:", "cifar100:"]
    assert not imported(ended) & HEAVY


def test_a_program_that_is_called_ran_has_the_networks_too(tmp_path: Path) -> None:
    names = [*dir(ran)]
    script = tmp_path / "ran"
    script.write_text(
        f"import ran\nprint([hasattr(ran, name) for name in {[*names, 'attention57']}])"
    )
    assert started([str(script)], []).stdout.strip() == str([True] * len(names) + [False])
