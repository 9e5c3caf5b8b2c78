"""Trainings of several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ran
from ran.errors import UserError
from ran.processes import Processes, find_processes
from ran.training.run import TrainingResult
from tests.tiny import TINY


def run_two(settings: dict[str, Any], folder: Path, where: str) -> subprocess.CompletedProcess[str]:
    """A training under torchrun; each process leaves the weights it ends with in ``folder``."""
    path = folder / "settings.json"
    path.write_text(json.dumps({**settings, "output": str(settings["output"])}))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "tests.training.worker", where, str(path), str(folder)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


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
    ended = run_two(settings, folder, "never")
    assert ended.returncode == 0, ended.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


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
