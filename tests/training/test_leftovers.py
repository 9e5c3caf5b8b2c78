"""What killed processes leave half-written, and who may delete it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ran.files
from ran.files import ABANDONED, is_abandoned, partial_path
from ran.training.runs import remove_leftovers


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def part_of(path: Path, process: int, monkeypatch: pytest.MonkeyPatch, age: float = 0) -> Path:
    """What ``process`` has begun to write of ``path``, last touched ``age`` seconds ago."""
    with monkeypatch.context() as patch:
        patch.setattr(ran.files.os, "getpid", lambda: process)
        partial = partial_path(path)
    partial.parent.mkdir(exist_ok=True)
    partial.write_text("half")
    if age:
        then = partial.stat().st_mtime - age
        os.utime(partial, (then, then))
    return partial


def test_only_parts_that_no_process_will_finish_are_abandoned(
    tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    for process, expected in (
        (dead, True),
        (os.getpid(), True),  # of an earlier process of this number, as in containers
        (os.getppid(), False),
        (1, False),  # somebody else's
        (2**70, False),  # no number of a process
    ):
        assert is_abandoned(part_of(path, process, monkeypatch, 2 * ABANDONED)) is expected, process
    for name in ("last.ckpt", ".hidden", ".last.partial-x.ckpt", f"a.partial-{dead}"):
        assert not is_abandoned(tmp_path / name), name


def test_parts_of_another_machines_processes_are_abandoned_when_they_are_old(
    tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ran.files, "_HOST", "node-17")
    fresh = part_of(tmp_path / "a.ckpt", dead, monkeypatch)
    old = part_of(tmp_path / "b.ckpt", os.getppid(), monkeypatch, 2 * ABANDONED)
    monkeypatch.setattr(ran.files, "_HOST", "node-1")
    assert not is_abandoned(fresh)
    assert is_abandoned(old)
    assert not is_abandoned(tmp_path / f".gone.partial-node-17-{dead}.ckpt")


def test_leftovers_in_a_runs_folder_are_deleted_and_nothing_else(
    tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run[1].v2"
    part_of(folder / "last.ckpt", dead, monkeypatch)
    kept = {part_of(folder / "best.ckpt", os.getppid(), monkeypatch)}
    kept.add(part_of(tmp_path / "beside.ckpt", dead, monkeypatch))
    remove_leftovers(folder)
    assert {path for path in tmp_path.rglob("*") if path != folder} == kept
