"""Trainings of several processes."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

import ran
from ran.errors import UserError
from ran.processes import Processes, find_processes
from ran.training.run import TrainingResult
from ran.training.watch import Watch
from tests.tiny import TINY


def start_two(settings: dict[str, Any], folder: Path, where: str) -> "subprocess.Popen[str]":
    """A training under torchrun; each process leaves the weights it ends with in ``folder``."""
    path = folder / "settings.json"
    path.write_text(json.dumps({**settings, "output": str(settings["output"])}))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "tests.training.worker", where, str(path), str(folder)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def test_two_processes_end_with_the_same_weights_and_the_accuracy_of_one(
    tmp_path: Path, trained: TrainingResult
) -> None:
    settings = {**TINY, "epochs": 5, "ema": 0.5, "checkpoint_steps": 50, "resume": True}
    settings["output"] = tmp_path / "run"
    first, second = weights_of_two(settings, tmp_path)
    assert_equal(first, second)
    again = ran.train(**settings)  # of one process: reads what the two have written
    assert again.rows[0]["step"] == trained.rows[0]["step"]  # the same number of images in a step
    for name, tolerance in (("test_accuracy", 0.04), ("train_loss", 0.15)):
        assert again.last[name] == pytest.approx(trained.last[name], abs=tolerance)

    # and, started again from the middle of the last epoch, they end with the same bits
    (tmp_path / "run" / "previous.ckpt").replace(tmp_path / "run" / "last.ckpt")
    middle = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert middle["global_step"] == 200
    assert middle["global_step"] % again.rows[0]["step"] > 0
    resumed, _ = weights_of_two(settings, tmp_path)
    assert_equal(resumed, first)


def weights_of_two(settings: dict[str, Any], folder: Path) -> list[dict[str, torch.Tensor]]:
    process = start_two(settings, folder, "never")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize(
    ("where", "state"), [("stop1:3", "it is stopped"), ("kill1:3", "it has ended")]
)
def test_a_process_that_is_lost_is_named_by_the_others(
    where: str, state: str, tmp_path: Path
) -> None:
    settings = {**TINY, "epochs": 2, "timeout": 5.0, "output": tmp_path / "run"}
    process = start_two(settings, tmp_path, where)
    assert process.stderr
    said = ""
    for line in process.stderr:
        said += line
        found = re.match(r"ran: process 1 of 2 \((\d+) on .*\): (.*); once it is gone, the", line)
        if found and where == "stop1:3":
            os.kill(int(found[1]), signal.SIGKILL)  # as torchrun does too, half a minute later
    assert process.wait() != 0
    lines = [line for line in said.splitlines() if line.startswith("ran: ")]
    assert [state in line and f"in {tmp_path / 'run'}" in line for line in lines] == [True], said
    assert "worker.py" not in said.partition("torch/distributed/elastic")[0]  # no traceback of ours


def test_the_watch_has_left_the_store_before_the_process_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setattr("ran.training.watch._BEAT", 0.01)
    looking = threading.Event()

    def look(self: Watch) -> None:
        looking.set()
        time.sleep(0.5)

    monkeypatch.setattr(Watch, "_look", look)
    watch = Watch(Processes(rank=0, count=2), 60.0, tmp_path, lambda: None)
    with watch.naming():
        watch.setup(L.Trainer(logger=False, barebones=True), L.LightningModule(), "fit")
        assert looking.wait(10)
    assert not [thread for thread in threading.enumerate() if thread.name == "ran-watch"]
    assert store.get("ran/0/0") == b"done"


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def test_the_environment_of_torchrun_says_which_process_this_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert find_processes() == Processes()
    found = {"RANK": "13", "WORLD_SIZE": "16", "LOCAL_RANK": "5", "LOCAL_WORLD_SIZE": "8"}
    for name, value in {**found, "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    assert find_processes() == Processes(rank=13, count=16, local_rank=5, local_count=8)
    assert (find_processes().machines, find_processes().first) == (2, False)
    monkeypatch.setenv("WORLD_SIZE", "17")
    with pytest.raises(UserError, match="equally many on each machine"):
        find_processes()


def test_a_batch_that_the_processes_cannot_share_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"}
    for name, value in {**found, "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="batch_size: expected a multiple of 3"):
        ran.train(**TINY, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
