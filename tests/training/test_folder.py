"""The folder that a training writes: which it takes, and that no other training has it."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from rich.console import Console

import ran
from ran.errors import UserError
from ran.files import partial_path, read_json
from ran.training import lock as locking
from ran.training import runs
from ran.training.lock import LOCK_FILE, FolderLock
from ran.training.run import train
from ran.training.settings import make_settings
from tests.tiny import make_folder, tiny_settings


def test_an_existing_folder_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    for overwrite, reason in ((False, "it exists"), (True, "run.json")):
        with pytest.raises(UserError, match=reason) as caught:
            train(tiny_settings(tmp_path, overwrite=overwrite))
        assert str(tmp_path) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.usefixtures("few_digits")
def test_overwrite_replaces_a_trainings_folder_only_if_nothing_else_is_in_it(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    train(tiny_settings(folder, epochs=1))
    before = (folder / "run.json").read_bytes()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        train(tiny_settings(folder, epochs=2, overwrite=True))
    assert (folder / "run.json").read_bytes() == before
    (folder / "notes.txt").unlink()
    result = train(tiny_settings(folder, epochs=2, overwrite=True))
    assert len(result.rows) == 2
    assert {path.name for path in folder.iterdir()} < runs.RUN_FILES


def test_the_folder_of_work_may_be_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(Path())
    with FolderLock(tmp_path / "run") as lock:
        runs.start_folder(tmp_path / "run", settings.to_json(), lock)
    monkeypatch.chdir(tmp_path / "run")
    Path("last.ckpt").write_text("old")
    Path(runs.LOG_FOLDER).mkdir()
    runs.check_folder(Path(), overwrite=True)
    with FolderLock(Path()) as lock:
        runs.start_folder(Path(), {"seed": 3}, lock, overwrite=True)
    assert [entry.name for entry in Path.cwd().iterdir()] == ["run.json"]
    assert read_json(Path("run.json"), format="ran-run", version=1)["settings"] == {"seed": 3}


def test_an_empty_folder_is_a_new_one(tmp_path: Path) -> None:
    for name in ("empty", "killed", "linked"):
        (tmp_path / name).mkdir()
    (tmp_path / "killed" / LOCK_FILE).write_text("what a kill before run.json leaves")
    partial_path(tmp_path / "killed" / "run.json").write_text("half")
    (tmp_path / "link").symlink_to(tmp_path / "linked")
    for name in ("empty", "killed", "link"):
        folder = tmp_path / name
        inode = folder.stat().st_ino
        runs.check_folder(folder, overwrite=False)
        with FolderLock(folder) as lock:
            runs.remove_leftovers(folder)
            assert not runs.start_folder(folder, {"seed": 1}, lock)
        assert folder.stat().st_ino == inode
        assert [entry.name for entry in folder.iterdir()] == ["run.json"]


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("resume", [False, True])
def test_a_training_that_fails_leaves_an_empty_folder_as_it_was(
    resume: bool, tmp_path: Path
) -> None:
    class Break(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            assert (tmp_path / LOCK_FILE).exists()
            raise UserError("broken")

    with pytest.raises(UserError, match="broken"):
        train(tiny_settings(tmp_path, resume=resume), callbacks=[Break()])
    assert list(tmp_path.iterdir()) == []


#: Takes the lock of a folder, says so and holds it until it is told to end.
HOLDER = """
import sys, pathlib, os
sys.argv[0] = "ran"  # loads no networks
from ran.training.lock import FolderLock
with FolderLock(pathlib.Path(sys.argv[1])) as lock:
    lock.take()
    if len(sys.argv) > 2 and os.fork() == 0:  # as a process that reads images
        sys.stdin.read()
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", HOLDER, str(folder), *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("change", [{"resume": True}, {"overwrite": True}])
def test_a_folder_that_a_training_writes_is_refused_untouched(
    change: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    settings = tiny_settings(folder, epochs=1)
    with FolderLock(folder) as lock:
        runs.start_folder(folder, settings.to_json(), lock)
    (folder / "metrics.csv").write_text("of before")
    process = holder(folder)
    try:
        before = {entry.name: entry.read_bytes() for entry in folder.iterdir()}
        with pytest.raises(UserError) as caught:
            ran.train(**{**settings.to_json(), **change})
        assert str(caught.value).startswith(
            f"{folder}: expected no other training in this folder, process {process.pid} on "
        )
        assert {entry.name: entry.read_bytes() for entry in folder.iterdir()} == before
    finally:
        process.communicate()
    assert not (folder / LOCK_FILE).exists()


def test_a_new_folder_goes_to_the_one_that_makes_it_first(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with FolderLock(folder) as first, FolderLock(folder) as second:
        runs.check_folder(folder, overwrite=False)  # both have looked
        assert runs.start_folder(folder, {"seed": 1}, first)
        with pytest.raises(UserError, match=rf"process {os.getpid()}, this one, is writing it"):
            runs.start_folder(folder, {"seed": 2}, second)
    with FolderLock(folder) as third, pytest.raises(UserError, match="it exists"):
        runs.start_folder(folder, {"seed": 3}, third)
    assert read_json(folder / "run.json", format="ran-run", version=1)["settings"] == {"seed": 1}


def test_a_killed_process_holds_no_lock_though_its_children_live(tmp_path: Path) -> None:
    process = holder(tmp_path, "fork")
    with FolderLock(tmp_path) as lock:
        with pytest.raises(UserError, match="expected no other training"):
            lock.take()
        process.send_signal(signal.SIGKILL)
        process.wait()
        lock.take()
        assert (tmp_path / LOCK_FILE).read_text().startswith(f"{os.getpid()} on ")
    assert list(tmp_path.iterdir()) == []
    assert process.stdin
    process.stdin.close()  # ends the child


def test_a_lock_that_is_removed_while_it_is_waited_for_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = fcntl.lockf
    removed: list[int] = []

    def remove_first(file: int, how: int) -> None:
        if not removed:
            removed.append(file)
            (tmp_path / LOCK_FILE).unlink()
        usual(file, how)

    monkeypatch.setattr(locking.fcntl, "lockf", remove_first)
    with FolderLock(tmp_path) as lock:
        lock.take()
        assert (tmp_path / LOCK_FILE).exists()


def test_a_disk_without_locks_guards_nothing_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(file: int, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locking.fcntl, "lockf", no_locks)
    with FolderLock(tmp_path) as lock:
        assert lock.guards
        lock.take()
        assert (lock.guards, lock.held) == (False, True)


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("name", ["a b  c", "a\nb", "\udcff run", "[red]x"])
def test_a_folder_may_have_any_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny_settings(tmp_path / name, epochs=1, batch_size=96)
    first = train(settings)
    console = Console(width=1000)
    again = train(make_settings({**settings.to_json(), "resume": True}), console)
    assert (again.rows, again.folder) == (first.rows, tmp_path / name)
    run = read_json(tmp_path / name / "run.json", format="ran-run", version=1)
    assert run["settings"]["output"] == str(tmp_path / name)
    shown = name.replace("\udcff", "\\xff").replace("\n", "\\n")
    assert f"going on from {tmp_path}/{shown}/last.ckpt\n" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["folder", "imagenet"])
def test_a_folder_among_the_classes_of_the_data_is_refused(kind: str, tmp_path: Path) -> None:
    data = make_folder(tmp_path / "pets")
    (tmp_path / "link").symlink_to(data)
    for inside in (data / "train", data / "test" / "run", tmp_path / "link" / "train" / "run"):
        with pytest.raises(UserError, match=r"expected a folder outside .*, whose folders are cl"):
            train(tiny_settings(inside, data=f"{kind}:{data}"))
        assert not list(tmp_path.rglob("run.json"))
