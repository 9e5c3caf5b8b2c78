"""One suite in several pytest processes."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests import shares

SUITE = """
import os, pytest, time
from pathlib import Path

@pytest.fixture(scope="module")
def module_wide():
    return 1

@pytest.mark.parametrize("n", range(30))
@pytest.mark.parametrize("again", range(2))
def test_many(n, again, module_wide):
    time.sleep(0.02)
    with open(os.environ["SEEN"], "a") as seen:
        seen.write(f"{Path(__file__).stem} {n} {again} {os.getpid()}\\n")

def test_wrong():
    assert "what came" == "what was expected"
"""


def test_every_test_runs_once_in_some_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    for name in ("test_a.py", "test_b.py"):
        (tmp_path / name).write_text(SUITE)
    options = [str(tmp_path), "-q", "-c", "/dev/null", "--rootdir", str(tmp_path)]
    assert shares.run(2, [*options, "-p", "no:cacheprovider"]) == 1
    lines = [line.split() for line in (tmp_path / "seen").read_text().splitlines()]
    assert set(Counter(tuple(line[:3]) for line in lines).values()) == {1}
    assert len(lines) == 2 * 60
    assert len({line[3] for line in lines}) == 2  # each process found something to do
    out = capfd.readouterr().out
    assert "2 processes: 2 failed, 120 passed" in out or "2 processes: 120 passed, 2 failed" in out
    assert out.count("assert 'what came' == 'what was expected'") >= 2


def test_a_file_that_cannot_be_imported_does_not_keep_the_others_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    (tmp_path / "test_missing.py").write_text("import no_such_package\n")
    (tmp_path / "test_fine.py").write_text("def test_fine():\n    pass\n")
    options = [str(tmp_path), "-c", "/dev/null", "--rootdir", str(tmp_path)]
    assert shares.run(1, [*options, "-p", "no:cacheprovider"]) == 1
    out = capfd.readouterr().out
    assert "1 processes: 1 passed, 1 error" in out
    assert "ModuleNotFoundError: No module named 'no_such_package'" in out


BROKEN = """
import os, pytest
from tests import shares

@pytest.mark.parametrize("n", range(20))
def test_on_a_gpu(n):
    with open(os.environ["SEEN"], "a") as seen:
        seen.write(f"{n} {os.getpid()}\\n")
    if n in (5, 9):
        shares.lost = lambda: "an illegal memory access was encountered"
    assert not shares.lost()
"""


def test_a_process_whose_gpu_is_lost_fails_one_test_and_leaves_the_others_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    (tmp_path / "test_broken.py").write_text(BROKEN)
    options = [str(tmp_path), "-c", "/dev/null", "--rootdir", str(tmp_path)]
    assert shares.run(1, [*options, "-p", "no:cacheprovider"]) == 2
    lines = [line.split() for line in (tmp_path / "seen").read_text().splitlines()]
    assert sorted(int(n) for n, _ in lines) == list(range(20))  # each once
    assert len({process for _, process in lines}) == 3
    out = capfd.readouterr().out
    assert "2 failed, 18 passed" in out
    assert "test_on_a_gpu[9]: an illegal memory access was encountered" in out


def test_what_has_failed_before_a_cut_is_told(tmp_path: Path) -> None:
    suite = "import time\ndef test_a():\n    assert False, 'told'\n"
    suite += "def test_b():\n    open('begun', 'w').close()\n    time.sleep(600)\n"
    (tmp_path / "test_slow.py").write_text(suite)
    options = ["1", "test_slow.py", "-c", "/dev/null", "--rootdir", ".", "-p", "no:cacheprovider"]
    running = subprocess.Popen(
        # As a job in a shell's background, to which Ctrl-C means nothing.
        [
            "sh",
            "-c",
            'trap "" INT; exec "$@"',
            "sh",
            sys.executable,
            "-m",
            "tests.shares",
            *options,
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    out, _ = running.communicate(timeout=30)
    assert running.returncode == 2
    assert "AssertionError: told" in out
    assert "1 processes: 1 failed" in out
