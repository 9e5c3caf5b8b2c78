"""Does what a training writes in forked processes whose file operations fail, one after another.

A process of its own, with ``faults.c`` preloaded: ``python -m tests.training.faulty LIBRARY FOLDER
SCENARIO,… CASES SEED``. Prints how many cases there were of each and what was lost in them.
"""

import copy
import ctypes
import dataclasses
import errno
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ran
import ran.training.run
from ran.data import ImageData, load_data
from ran.data.dataset import InMemory
from ran.errors import UserError
from ran.files import read_json
from ran.training import runs
from ran.training.checkpoints import CheckpointFiles, find_checkpoint
from ran.training.lock import FolderLock
from ran.training.logs import CurveLog
from tests.tiny import TINY, TINY_OPTIONS

from .everything import checkpoint_of

#: As in faults.c: killed before, and after half of, an operation; a disk that is full from then on.
KILL, HALF, FULL = -1, -2, -1000 - errno.ENOSPC
ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EACCES", "EROFS", "EMFILE", "EINTR")
HOW = {"kill": KILL, "half": HALF, "full": FULL} | {n: getattr(errno, n) for n in ERRORS}
KILLED, DONE, REFUSED, RAISED = "killed", "done", "refused", "raised"


@dataclass
class Scenario:
    """``prepare`` makes a folder, ``act`` changes it, ``check`` finds nothing of before lost.

    ``check`` gets what was made of ``act`` and how, and asserts.
    """

    prepare: Callable[[Path], None]
    act: Callable[[Path], None]
    check: Callable[[Path, str, str], None]


def save(step: int, name: str = "last.ckpt") -> Callable[[Path], None]:
    return lambda folder: CheckpointFiles().save_checkpoint(checkpoint_of(step), folder / name)


def step_in(path: Path) -> int:
    content = CheckpointFiles().load_checkpoint(path)
    assert torch.equal(content["weights"], checkpoint_of(content["step"])["weights"])
    return int(content["step"])


def nothing_else(folder: Path, *names: str) -> None:
    """After ``remove_leftovers``, ``folder`` holds no more than ``names``."""
    runs.remove_leftovers(folder)
    assert {entry.name for entry in folder.iterdir()} <= set(names)


def prepare_two(folder: Path) -> None:
    folder.mkdir()
    save(0)(folder)
    save(1)(folder)


def check_last(folder: Path, outcome: str, how: str) -> None:
    found, errors = find_checkpoint(folder)
    assert found
    assert not errors
    assert step_in(found) in ({2} if outcome == DONE else {1, 2})
    save(3)(folder)  # and it goes on
    assert step_in(folder / "last.ckpt") == 3
    assert step_in(folder / "previous.ckpt") in (1, 2)
    nothing_else(folder, "last.ckpt", "previous.ckpt")


def check_first(folder: Path, outcome: str, how: str) -> None:
    found, errors = find_checkpoint(folder)
    assert not errors
    assert found or outcome != DONE
    save(3)(folder)
    assert step_in(folder / "last.ckpt") == 3


def check_best(folder: Path, outcome: str, how: str) -> None:
    assert step_in(folder / "best.ckpt") in ({2} if outcome == DONE else {1, 2})


def start(seed: int, *, overwrite: bool) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        with FolderLock(folder) as lock:
            runs.start_folder(folder, {"seed": seed}, lock, overwrite=overwrite)

    return act


def prepare_old(folder: Path) -> None:
    start(1, overwrite=False)(folder)
    for name in ("last.ckpt", "previous.ckpt", "model.safetensors", "tensorboard/events"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)


def seed_in(folder: Path) -> int:
    content = read_json(folder / "run.json", format="ran-run", version=1)
    return int(content["settings"]["seed"])


def check_overwritten(folder: Path, outcome: str, how: str) -> None:
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    old = {"last.ckpt", "previous.ckpt", "model.safetensors", "tensorboard/events"}
    seed = seed_in(folder)
    assert seed == 2 or outcome != DONE
    if seed == 2:
        assert not left & old
    if how == "full" and outcome == REFUSED:
        assert seed == 1
        assert old <= left
    for name in left & old:
        assert (folder / name).read_text() == name
    start(3, overwrite=True)(folder)
    assert seed_in(folder) == 3
    nothing_else(folder, "run.json")


def check_new(folder: Path, outcome: str, how: str) -> None:
    if outcome == DONE:
        assert seed_in(folder) == 2
    elif not runs.is_new(folder):
        assert seed_in(folder) == 2
        return
    start(3, overwrite=outcome == DONE)(folder)
    assert seed_in(folder) == 3
    nothing_else(folder, "run.json")


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return ran.create_model("attention56_cifar_pool", num_classes=3, **TINY_OPTIONS)


def check_network(folder: Path, outcome: str, how: str) -> None:
    found = ran.from_pretrained(folder).state_dict()
    which = [
        seed
        for seed in (1, 2)
        if all(torch.equal(value, found[name]) for name, value in NETWORKS[seed].items())
    ]
    assert which in ([[2]] if outcome == DONE else [[1], [2]])


NETWORKS = {seed: network(seed).state_dict() for seed in (1, 2)}


def log(*steps: int) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        curves = CurveLog(folder, steps[0])
        for step in steps:
            curves.log_metrics({"loss": step / 2}, step)
        curves.finalize("success")

    return act


def check_log(folder: Path, outcome: str, how: str) -> None:
    log(4, 5)(folder)
    events = EventAccumulator(str(folder)).Reload().Scalars("loss")
    steps = [event.step for event in events]
    assert [event.value for event in events] == [step / 2 for step in steps]
    whole = [0, 1, 2, 3, 4, 5]
    assert (
        steps == whole if outcome == DONE else steps in ([0, 1, *whole[4:]], [0, 1, 2, 4, 5], whole)
    )


def training(folder: Path, **changes: Any) -> ran.training.run.TrainingResult:
    settings = {**TINY, "epochs": 2, "batch_size": 48, "checkpoint_steps": 1, "output": folder}
    return ran.train(**{**settings, "ema": 0.5, "resume": True, **changes})


def load_few(*arguments: Any) -> ImageData:
    data = load_data(*arguments)
    train, test = (InMemory(*part.__getitems__(range(96))) for part in (data.train, data.test))
    return dataclasses.replace(data, train=train, test=test)


def results(folder: Path) -> tuple[bytes, list[str]]:
    """The weights, and of metrics.csv what does not depend on the clock."""
    lines = (folder / "metrics.csv").read_text().splitlines()
    return (folder / "model.safetensors").read_bytes(), [line.rsplit(",", 2)[0] for line in lines]


def check_training(folder: Path, outcome: str, how: str) -> None:
    report = in_a_fork(lambda: training(folder))
    assert report == (DONE, ""), report
    assert results(folder) == NEVER_FAILED
    nothing_else(folder, *runs.RUN_FILES)


NEVER_FAILED: tuple[bytes, list[str]] = (b"", [])

SCENARIOS = {
    "last": Scenario(prepare_two, save(2), check_last),
    "first": Scenario(Path.mkdir, save(2), check_first),
    "best": Scenario(
        lambda folder: (folder.mkdir(), save(1, "best.ckpt")(folder))[1],  # type: ignore[func-returns-value]
        save(2, "best.ckpt"),
        check_best,
    ),
    "overwrite": Scenario(prepare_old, start(2, overwrite=True), check_overwritten),
    "new": Scenario(lambda folder: None, start(2, overwrite=False), check_new),
    "network": Scenario(
        lambda folder: (ran.save_pretrained(network(1), folder), None)[1],
        lambda folder: (ran.save_pretrained(network(2), folder), None)[1],
        check_network,
    ),
    "log": Scenario(log(0, 1), log(2, 3), check_log),
    "training": Scenario(
        lambda folder: None, lambda folder: (training(folder), None)[1], check_training
    ),
}


def in_a_fork(act: Callable[[], Any]) -> tuple[str, str]:
    """What became of ``act``, and its one line where it was refused."""
    reading, writing = os.pipe()
    if (process := os.fork()) == 0:
        message = DONE
        try:
            act()
        except (UserError, OSError) as error:
            message = f"{REFUSED} {error}"
        except BaseException:
            message = f"{RAISED} {traceback.format_exc()}"
        LIBRARY.fault_disarm()
        os.write(writing, message.encode()[:60_000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        outcome, _, message = file.read().partition(" ")
    os.waitpid(process, 0)
    return outcome or KILLED, message


def run_case(scenario: Scenario, folder: Path, at: int, how: str) -> str:
    """What is wrong, or nothing."""

    def act() -> None:
        LIBRARY.fault_arm(os.fsencode(folder), at, HOW[how])
        scenario.act(folder)

    outcome, message = in_a_fork(act)
    try:
        assert outcome != RAISED, message
        assert "\n" not in message, message
        assert (outcome == KILLED) == (how in ("kill", "half"))
        scenario.check(folder, outcome, how)
    except Exception:
        return f"{outcome} {message}\n{traceback.format_exc()}"
    return ""


def count_operations(scenario: Scenario, folder: Path) -> int:
    reading, writing = os.pipe()

    def act() -> None:
        LIBRARY.fault_arm(os.fsencode(folder), -1, 0)
        scenario.act(folder)
        os.write(writing, str(LIBRARY.fault_count()).encode())

    outcome = in_a_fork(act)
    assert outcome == (DONE, ""), outcome
    os.close(writing)
    with os.fdopen(reading) as file:
        return int(file.read())


def fresh(scenario: Scenario, root: Path) -> Iterator[Path]:
    """The folder of ``scenario``, prepared once and anew in each round."""
    prepared, folder = root / "prepared", root / "run"
    scenario.prepare(prepared)
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        if prepared.exists():
            shutil.copytree(prepared, folder)
        yield folder


def main(root: Path, name: str, most: int, seed: int) -> None:
    global NEVER_FAILED
    scenario, choice = SCENARIOS[name], random.Random(seed)
    folders = fresh(scenario, root)
    operations = count_operations(scenario, next(folders))
    if name == "training":
        NEVER_FAILED = copy.deepcopy(results(root / "run"))
    cases = [(at, how) for at in range(operations) for how in HOW]
    if most < len(cases):
        cases = choice.sample(cases, most)
    print(f"{name}: {len(cases)} cases at {operations} file operations, seed {seed}")
    for at, how in cases:
        if wrong := run_case(scenario, next(folders), at, how):
            print(f"LOST: {name}, {how} at operation {at}: {wrong}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    LIBRARY = ctypes.CDLL(sys.argv[1])
    ran.training.run.load_data = load_few  # type: ignore[assignment]
    ran.training.run.plot_curves = lambda *_, **__: None
    ran.training.run.draw_test_masks = lambda *_: None
    for name in sys.argv[3].split(","):
        folder = Path(sys.argv[2]) / name
        folder.mkdir()
        main(folder, name, int(sys.argv[4]), int(sys.argv[5]))
