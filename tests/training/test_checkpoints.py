"""Checkpoints that are damaged, of another training, or that the disk has no room for."""

import dataclasses
import os
import resource
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from rich.console import Console

import ran
import ran.training.run
from ran.errors import UserError
from ran.training.checkpoints import CheckpointFiles, find_checkpoint
from ran.training.run import TrainingResult, train
from tests.tiny import tiny_settings

from .everything import EVERYTHING, assert_same_end, checkpoint_of

pytestmark = pytest.mark.usefixtures("no_pictures")


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


def packed(path: Path) -> str:
    """Puts a checkpoint there whose zeros are packed; what is said of it."""
    CheckpointFiles().save_checkpoint(checkpoint_of(0), path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return f"{path.stat().st_size:,} bytes would unpack to"


def pipe(path: Path) -> str:
    os.mkfifo(path)
    return "expected a checkpoint, found a pipe"


def folder(path: Path) -> str:
    path.mkdir()
    return "expected a checkpoint, found no file there"


@pytest.mark.parametrize("make", [packed, pipe, folder])
def test_what_would_fill_the_memory_or_never_end_is_not_read(
    make: Callable[[Path], str], tmp_path: Path
) -> None:
    last = tmp_path / "last.ckpt"
    CheckpointFiles().save_checkpoint(checkpoint_of(0), tmp_path / "previous.ckpt")
    expected = make(last)
    found, [error] = find_checkpoint(tmp_path)
    assert found == tmp_path / "previous.ckpt"
    assert str(error).startswith(f"{last}: expected a ")
    assert expected in str(error)


def test_tensors_do_not_follow_a_file_that_is_written_again(tmp_path: Path) -> None:
    files, path = CheckpointFiles(), tmp_path / "last.ckpt"
    files.save_checkpoint(checkpoint_of(1), path)
    weights = files.load_checkpoint(path)["weights"]
    with path.open("r+b") as file:  # as a copy over it does
        file.write(bytes(path.stat().st_size))
    assert torch.equal(weights, checkpoint_of(1)["weights"])


def test_two_damaged_checkpoints_are_named_and_left(stopped: dict[str, Any]) -> None:
    for name in ("last.ckpt", "previous.ckpt"):
        (stopped["output"] / name).write_bytes(b"damaged")
    before = sorted(stopped["output"].iterdir())
    with pytest.raises(UserError, match=r"last\.ckpt: expected a readable checkpoint"):
        ran.train(**stopped)
    assert sorted(stopped["output"].iterdir()) == before


@contextmanager
def full_disk(free: int) -> Iterator[None]:
    """Files may not grow beyond ``free`` bytes inside."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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
