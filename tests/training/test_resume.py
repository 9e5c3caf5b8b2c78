"""Trainings that are killed or stopped, and go on."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import ran
import ran.training.run
from ran.errors import UserError
from ran.training.run import TrainingResult, train
from ran.training.schedules import make_schedule
from ran.training.settings import make_settings
from ran.weights.network_card import load_network
from tests.tiny import TINY, make_folder, tiny_settings

from .everything import EVERYTHING, StopAfterStep, assert_same_end

pytestmark = pytest.mark.usefixtures("no_pictures")


def run_worker(where: str, settings: dict[str, Any], folder: Path) -> int:
    """The exit code of a training in a process of its own that dies as ``where`` says."""
    path = folder / "settings.json"
    path.write_text(json.dumps({**settings, "output": str(settings["output"])}))
    command = [sys.executable, "-m", "tests.training.worker", where, str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=False, env=environment).returncode


def test_killed_at_any_moment_a_training_ends_with_the_same_bits(
    pets: Path, never_killed: TrainingResult, tmp_path: Path
) -> None:
    settings = {
        **EVERYTHING,
        "data": f"folder:{pets}",
        "output": tmp_path / "run",
        "resume": True,
    }
    # in the middle of the second epoch, not at the step of a checkpoint; then while one is written
    assert run_worker("step:7", settings, tmp_path) == -signal.SIGKILL
    last = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 6
    assert run_worker("save:5", settings, tmp_path) == -signal.SIGKILL
    assert any(".partial-" in path.name for path in (tmp_path / "run").iterdir())
    assert_same_end(ran.train(**settings), never_killed)
    assert not any(".partial-" in path.name for path in (tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    ("stop", "number"),
    [
        (StopAfterStep(1), signal.SIGTERM),
        (StopAfterStep(4), signal.SIGTERM),  # the last step of an epoch
        (StopAfterStep(6, signal.SIGINT), signal.SIGINT),
        (StopAfterStep(8, in_test=True), signal.SIGTERM),
    ],
)
def test_a_signal_saves_the_step_and_stops_with_its_code(
    stop: StopAfterStep,
    number: int,
    pets: Path,
    never_killed: TrainingResult,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = {
        **EVERYTHING,
        "data": f"folder:{pets}",
        "output": tmp_path / "run",
        "checkpoint_steps": 100,
    }
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit) as caught:
        ran.train(**settings, console=Console(), callbacks=[stop])
    assert caught.value.code == 128 + number
    assert f"stopped after step {stop.step} of 20" in capsys.readouterr().out
    assert handlers == [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    saved = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == stop.step
    load_network(tmp_path / "run" / "last.ckpt")
    assert_same_end(ran.train(**settings, resume=True), never_killed)


def test_a_length_in_iterations_ends_within_an_epoch_and_resumes(
    pets: Path, tmp_path: Path
) -> None:
    settings = {**EVERYTHING, "data": f"folder:{pets}", "iterations": 10, "mix_until": 7}
    whole = ran.train(**settings, output=tmp_path / "whole")
    assert [row["step"] for row in whole.rows] == [4, 8, 10]
    with pytest.raises(SystemExit):
        ran.train(**settings, output=tmp_path / "run", callbacks=[StopAfterStep(9)])
    assert_same_end(ran.train(**settings, output=tmp_path / "run", resume=True), whole)


def test_no_step_is_logged_twice(pets: Path, tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    class FailAfterStep(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 60:
                raise RuntimeError("killed")

    settings = {**TINY, "data": f"folder:{pets}", "batch_size": 1, "epochs": 3}
    settings["output"] = tmp_path / "run"
    with pytest.raises(RuntimeError, match="killed"):
        ran.train(**settings, callbacks=[FailAfterStep()])
    ran.train(**settings, resume=True)  # from the end of the first epoch, step 34
    log = accumulators.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in log.Scalars("train_loss")] == [49, 99, 101]
    assert [event.step for event in log.Scalars("test_accuracy")] == [33, 67, 101]
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines[1:]] == [["1", "34"], ["2", "68"], ["3", "102"]]


def test_a_training_stopped_by_a_damaged_file_may_go_on_without_it(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "pets", count=8)
    settings = {**TINY, "data": f"imagenet:{data}", "batch_size": 8, "epochs": 2, "workers": 0}
    settings["output"] = tmp_path / "run"

    class Damage(L.Callback):
        def on_train_epoch_end(self, *_: Any) -> None:
            (data / "train" / "dog" / "1.png").write_bytes(b"no image")

    with pytest.raises(UserError, match=r"1\.png: expected a readable image"):
        ran.train(**settings, callbacks=[Damage()])
    with pytest.raises(UserError, match=r"1\.png: expected a readable image"):
        ran.train(**settings, resume=True)
    result = ran.train(**settings, resume=True, skip_unreadable=True)
    assert (len(result.rows), result.unreadable) == (2, 1)


def test_resuming_with_other_images_is_refused(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "pets", count=8)
    settings = {**TINY, "data": f"folder:{data}", "batch_size": 8, "output": tmp_path / "run"}
    with pytest.raises(SystemExit):
        ran.train(**settings, epochs=2, callbacks=[StopAfterStep(2)])
    damaged = data / "train" / "dog" / "1.png"
    damaged.write_bytes(b"no image")
    with pytest.raises(UserError) as caught:
        ran.train(**settings, epochs=2, resume=True, skip_unreadable=True)
    assert str(caught.value).startswith(
        "resume: expected the 16 training images and 16 test images of before, "
        f"folder:{data} has 15 and 16; 1 unreadable, first {damaged}: expected"
    )


def test_another_number_of_processes_is_said(
    stopped: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    last = stopped["output"] / "last.ckpt"
    torch.save({**torch.load(last, weights_only=True), "ran_processes": 2}, last)
    ran.train(**stopped, console=Console(width=1000))
    shown = capsys.readouterr().out
    assert f"going on from {last}, which 2 processes trained; with 1 the bits" in shown


def test_resuming_with_other_settings_is_refused(stopped: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^lr: expected 0\.1, with which .*, got 0\.2"):
        ran.train(**{**stopped, "lr": 0.2})
    with pytest.raises(UserError, match="resume: expected it without overwrite"):
        ran.train(**stopped, overwrite=True)


def test_a_finished_training_resumes_to_the_same_result(
    pets: Path, never_killed: TrainingResult
) -> None:
    again = ran.train(**EVERYTHING, data=f"folder:{pets}", output=never_killed.folder, resume=True)
    assert again == never_killed


def test_killing_a_first_epoch_leaves_a_folder_that_resumes_from_its_start(
    pets: Path, tmp_path: Path
) -> None:
    settings = tiny_settings(tmp_path / "run", data=f"folder:{pets}", epochs=1, batch_size=8)
    whole = train(settings)
    for name in ("last.ckpt", "previous.ckpt", "best.ckpt"):
        (whole.folder / name).unlink(missing_ok=True)  # as if it had been killed before the first
    before = load_file(whole.folder / "model.safetensors")
    resumed = ran.train(**{**settings.to_json(), "resume": True})
    after = load_file(resumed.folder / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_resuming_deletes_nothing_that_it_found(tmp_path: Path) -> None:
    """Somebody may have deleted the checkpoints of a finished training, and kept its network."""
    settings = tiny_settings(tmp_path / "run", epochs=1)
    folder = train(settings).folder
    for name in ("last.ckpt", "previous.ckpt"):
        (folder / name).unlink(missing_ok=True)
    (folder / "notes.txt").write_text("mine")
    kept = {entry.name for entry in folder.iterdir()}
    assert kept >= {"notes.txt", "model.safetensors", "model.json", "run.json"}

    class Break(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            raise UserError("broken")

    with pytest.raises(UserError, match="broken"):
        train(dataclasses.replace(settings, resume=True), callbacks=[Break()])
    assert kept <= {entry.name for entry in folder.iterdir()}


def test_a_finished_training_goes_on_with_more_epochs(
    pets: Path, never_killed: TrainingResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**EVERYTHING, "data": f"folder:{pets}", "output": tmp_path / "run"}
    total = settings["epochs"]
    short = ran.train(**{**settings, "epochs": 2, "mix_until": None})
    rates: dict[int, float] = {}

    class Note(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
            rates[trainer.global_step] = trainer.optimizers[0].param_groups[0]["lr"]

    more = {**settings, "mix_until": None, "resume": True}
    whole = ran.train(**more, callbacks=[Note()], console=Console(width=300))
    said = capsys.readouterr().out
    assert f"{total} epochs in place of 2: the learning rate goes on as in a training of" in said
    assert whole.rows[:2] == short.rows
    assert [row["epoch"] for row in whole.rows] == list(range(1, total + 1))
    # the rates of the long training, which the other test's was; not those after the short one's
    steps = int(short.rows[-1]["step"])
    schedule = make_schedule(make_settings({**more, "output": "x"}), steps // 2)
    assert rates == {
        step: pytest.approx(settings.get("lr", 0.1) * schedule(step))
        for step in range(steps, steps // 2 * total)
    }
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    assert content["settings"]["epochs"] == total
    assert content["lengthened"] == [{"from": 2, "to": total, "step": steps}]
    assert content["results"]["last"]["epoch"] == total
    with pytest.raises(UserError, match=rf"epochs: expected {total} or more, with which .* got 2"):
        ran.train(**{**more, "epochs": 2})


def test_a_lengthened_training_that_is_killed_goes_on_to_the_same_bits(
    pets: Path, tmp_path: Path
) -> None:
    def lengthen(name: str, **more: Any) -> TrainingResult:
        settings = {**TINY, "data": f"folder:{pets}", "epochs": 3, "warmup": 0}
        return ran.train(**settings, output=tmp_path / name, resume=True, **more)

    for name in ("whole", "run"):
        settings = {**TINY, "data": f"folder:{pets}", "epochs": 1, "warmup": 0}
        ran.train(**settings, output=tmp_path / name)
    whole = lengthen("whole")
    stop = int(whole.rows[0]["step"]) + 1
    with pytest.raises(SystemExit):
        lengthen("run", callbacks=[StopAfterStep(stop)])
    assert_same_end(lengthen("run"), whole)
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(content["lengthened"]) == 1
