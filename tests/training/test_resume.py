"""Trainings that are killed, stopped, or cannot write, and go on."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ran
import ran.training.run
from ran.errors import UserError
from ran.training.checkpoints import PARTS, CheckpointFiles, find_checkpoint
from ran.training.run import TrainingResult, train
from ran.weights.network_card import load_network
from tests.tiny import TINY, TINY_OPTIONS, make_folder, tiny_settings

#: Everything that could keep a state of its own, in 5 epochs of 4 steps of 2 batches each.
EVERYTHING: dict[str, Any] = {
    **{name: value for name, value in TINY.items() if name != "data"},
    "epochs": 5,
    "batch_size": 8,
    "accumulate": 2,
    "augmentation": "shift-flip",
    "cutout": 4,
    "mixup": 0.5,
    "cutmix": 0.5,
    "mix_until": 4,
    "clip_norm": 1.0,
    "ema": 0.9,
    "checkpoint_steps": 1,
    "model_options": {**TINY_OPTIONS, "drop_rate": 0.2},
}
#: Of the rows, all that does not depend on the clock.
SAME = ("epoch", "step", "train_loss", "train_accuracy", "learning_rate", "test_loss")


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    """Pictures are tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ran.training.run, "plot_curves", lambda *_, **__: None)
        patch.setattr(ran.training.run, "draw_test_masks", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("pets") / "pets", count=17)


@pytest.fixture(scope="module")
def never_killed(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    folder = tmp_path_factory.mktemp("never")
    return ran.train(**EVERYTHING, data=f"folder:{pets}", output=folder / "run")


def run_worker(where: str, settings: dict[str, Any], folder: Path) -> int:
    """The exit code of a training in a process of its own that dies as ``where`` says."""
    path = folder / "settings.json"
    path.write_text(json.dumps({**settings, "output": str(settings["output"])}))
    command = [sys.executable, "-m", "tests.training.worker", where, str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=False, env=environment).returncode


def assert_same_end(found: TrainingResult, expected: TrainingResult) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        states = [
            torch.load(result.folder / name, weights_only=True)["state_dict"]
            for result in (found, expected)
        ]
        assert states[0].keys() == states[1].keys()
        for key, value in states[0].items():
            assert torch.equal(value, states[1][key]), key
    weights = [(result.folder / "model.safetensors").read_bytes() for result in (found, expected)]
    assert weights[0] == weights[1]
    assert [[row[name] for name in SAME] for row in found.rows] == [
        [row[name] for name in SAME] for row in expected.rows
    ]


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


class StopAfterStep(L.Callback):
    """Stops as a signal from outside does, after a step, or in the test of an epoch."""

    def __init__(self, step: int, number: int = signal.SIGTERM, *, in_test: bool = False) -> None:
        self.step, self.number, self.in_test = step, number, in_test

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.in_test:
            os.kill(os.getpid(), self.number)

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and self.in_test:
            os.kill(os.getpid(), self.number)


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


@pytest.fixture
def stopped(pets: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of a training that was stopped after step 6 of 20, with a previous checkpoint."""
    settings = {
        **EVERYTHING,
        "data": f"folder:{pets}",
        "output": tmp_path / "run",
        "checkpoint_steps": 100,
    }
    with pytest.raises(SystemExit):
        ran.train(**settings, callbacks=[StopAfterStep(6)])
    return {**settings, "resume": True}


def test_no_step_is_logged_twice(pets: Path, tmp_path: Path) -> None:
    class FailAfterStep(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 60:
                raise RuntimeError("killed")

    settings = {**TINY, "data": f"folder:{pets}", "batch_size": 1, "epochs": 3}
    settings["output"] = tmp_path / "run"
    with pytest.raises(RuntimeError, match="killed"):
        ran.train(**settings, callbacks=[FailAfterStep()])
    ran.train(**settings, resume=True)  # from the end of the first epoch, step 34
    log = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in log.Scalars("train_loss")] == [49, 99, 101]
    assert [event.step for event in log.Scalars("test_accuracy")] == [33, 67, 101]
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines[1:]] == [["1", "34"], ["2", "68"], ["3", "102"]]


def test_a_damaged_checkpoint_costs_the_time_since_the_one_before_it(
    stopped: dict[str, Any],
    never_killed: TrainingResult,
    capsys: pytest.CaptureFixture[str],
) -> None:
    last = stopped["output"] / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-5000])

    class LookAtTheFirstSave(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
            # the damaged one has not taken the place of the one that is readable
            assert find_checkpoint(stopped["output"])[0] is not None
            CheckpointFiles().load_checkpoint(stopped["output"] / "previous.ckpt")

    result = ran.train(**stopped, console=Console(width=1000), callbacks=[LookAtTheFirstSave()])
    shown = capsys.readouterr().out
    assert f"{last}: expected a readable checkpoint" in shown
    assert f"going on from {stopped['output'] / 'previous.ckpt'}" in shown
    assert_same_end(result, never_killed)


def test_a_flipped_bit_in_a_tensor_is_damage(tmp_path: Path) -> None:
    files, last = CheckpointFiles(), tmp_path / "last.ckpt"
    for step in range(2):
        files.save_checkpoint(checkpoint_of(step), last)
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1  # among the 40 kB of weights
    last.write_bytes(content)
    found, errors = find_checkpoint(tmp_path)
    assert found == tmp_path / "previous.ckpt"
    assert [str(error) for error in errors] == [
        f"{last}: expected a readable checkpoint of tensors and numbers"
    ]


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
        f"resume: expected the 16 training and 16 test images of before, folder:{data} has 15 and "
        f"16; 1 unreadable, first {damaged}: expected"
    )


def test_another_number_of_processes_is_said(
    stopped: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    last = stopped["output"] / "last.ckpt"
    torch.save({**torch.load(last, weights_only=True), "ran_processes": 2}, last)
    ran.train(**stopped, console=Console(width=1000))
    shown = capsys.readouterr().out
    assert f"going on from {last}, which 2 processes trained; with 1 the bits" in shown


def test_two_damaged_checkpoints_are_named_and_left(stopped: dict[str, Any]) -> None:
    for name in ("last.ckpt", "previous.ckpt"):
        (stopped["output"] / name).write_bytes(b"damaged")
    before = sorted(stopped["output"].iterdir())
    with pytest.raises(UserError, match=r"last\.ckpt: expected a readable checkpoint"):
        ran.train(**stopped)
    assert sorted(stopped["output"].iterdir()) == before


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


@contextmanager
def full_disk(free: int) -> Iterator[None]:
    """Files may not grow beyond ``free`` bytes inside."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def checkpoint_of(step: int) -> dict[str, Any]:
    """The parts that a training's checkpoint has, and 40 kB."""
    return {**dict.fromkeys(PARTS), "step": step, "weights": torch.zeros(10_000)}


def test_a_full_disk_leaves_the_checkpoints_that_are_there(tmp_path: Path) -> None:
    files, path = CheckpointFiles(), tmp_path / "last.ckpt"
    for step in range(3):
        files.save_checkpoint(checkpoint_of(step), path)
    with full_disk(20_000), pytest.raises(UserError) as caught:
        files.save_checkpoint(checkpoint_of(3), path)
    assert str(caught.value).startswith(f"{path}: cannot write the checkpoint: ")
    assert "\n" not in str(caught.value)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert files.load_checkpoint(path)["step"] == 2
    assert files.load_checkpoint(tmp_path / "previous.ckpt")["step"] == 1
    path.unlink()  # as a kill between two renames would, where a file system has no links
    assert find_checkpoint(tmp_path) == (tmp_path / "previous.ckpt", [])


def test_a_training_on_a_full_disk_stops_in_one_line_and_resumes(
    pets: Path, never_killed: TrainingResult, tmp_path: Path
) -> None:
    class FillDisk(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 6:
                limit = (10_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
                resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    settings = {**EVERYTHING, "data": f"folder:{pets}", "output": tmp_path / "run"}
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(UserError, match=r"last\.ckpt: cannot write the checkpoint"):
            ran.train(**settings, callbacks=[FillDisk()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 5
    assert_same_end(ran.train(**settings, resume=True), never_killed)


class Poison(L.Callback):
    """Makes a weight NaN after a step, or the images of the next one."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            batch[0].fill_(float("nan"))


@pytest.mark.parametrize(("step", "accumulate"), [(0, 1), (6, 1), (6, 2)])
def test_a_loss_that_is_no_number_stops_with_step_and_rate_and_keeps_the_last_checkpoint(
    step: int, accumulate: int, pets: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    settings = {**EVERYTHING, "data": f"folder:{pets}", "output": folder, "accumulate": accumulate}
    with pytest.raises(UserError) as caught:
        ran.train(**settings, callbacks=[Poison(step)])
    rate = 0.1 * (1 / 5 if step == 0 else 0.9619397662556434)  # of a rise of 4 steps; a cosine
    assert str(caught.value).startswith(
        f"loss: not a finite number at step {step + 1}, learning rate {rate:.4g}"
    )
    if step == 0:
        assert not folder.exists()  # nothing was worth keeping
        return
    saved = torch.load(folder / "last.ckpt", weights_only=True)
    assert saved["global_step"] == step
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_weights_that_are_no_numbers_are_never_saved(pets: Path, tmp_path: Path) -> None:
    class PoisonWeights(L.Callback):
        def on_train_batch_end(
            self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any
        ) -> None:
            if trainer.global_step == 3:
                next(pl_module.parameters()).data.fill_(float("inf"))

    folder = tmp_path / "run"
    settings = {**EVERYTHING, "data": f"folder:{pets}", "output": folder}
    with pytest.raises(UserError, match="weights: not finite numbers after step 3, learning rate"):
        ran.train(**settings, callbacks=[PoisonWeights()])
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 2


def test_nothing_in_a_checkpoint_is_executed_on_resume(
    stopped: dict[str, Any], tmp_path: Path
) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "sprung",)

    for name in ("last.ckpt", "previous.ckpt"):
        torch.save({"state_dict": {}, "loops": Trap()}, stopped["output"] / name)
    with pytest.raises(UserError, match="expected a readable checkpoint of tensors and numbers"):
        ran.train(**stopped)
    assert not (tmp_path / "sprung").exists()


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


def test_a_checkpoint_of_another_training_is_refused_in_words(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path / "run", epochs=1)
    folder = train(settings).folder
    options = {**settings.model_options, "widths": [16]}
    other = tiny_settings(tmp_path / "other", epochs=1, model_options=options)
    (train(other).folder / "last.ckpt").replace(folder / "last.ckpt")
    again = dataclasses.replace(settings, resume=True)
    with pytest.raises(UserError, match=r"checkpoint of the same network.*options"):
        train(again)

    (folder / "previous.ckpt").unlink(missing_ok=True)
    torch.save({"state_dict": {}}, folder / "last.ckpt")
    with pytest.raises(UserError, match=r"last\.ckpt: expected a checkpoint that"):
        train(again)
