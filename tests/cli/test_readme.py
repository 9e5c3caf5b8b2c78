"""The README's commands: what they name exists, and they run one after another."""

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ran.cli import app
from ran.training import runs
from ran.training.lock import FolderLock
from ran.training.settings import TrainingSettings

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def command_lines() -> Iterator[list[str]]:
    """The words of every command in the README's blocks of commands, in order."""
    for language, block in _BLOCK.findall((ROOT / "README.md").read_text("utf-8")):
        if language:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if not line.startswith("#SBATCH") and (words := shlex.split(line, comments=True)):
                yield words


def arguments_of(words: list[str]) -> list[str] | None:
    """What ``ran`` is given in a command, also in one that torchrun starts; None without it."""
    if words[0] == "ran":
        return words[1:]
    if "torchrun" in words and words[words.index("-m") + 1] == "ran":
        return words[words.index("-m") + 2 :]
    return None


LINES = list(command_lines())
OF_RAN = [found for words in LINES if (found := arguments_of(words))]
TRAININGS = [words[1:] for words in OF_RAN if words[0] == "train" and "--list" not in words]


def test_the_readme_has_commands() -> None:
    assert len(OF_RAN) >= 15
    assert {words[0] for words in OF_RAN} >= {"train", "eval", "predict", "masks", "export", "info"}


@pytest.mark.parametrize("words", OF_RAN, ids=" ".join)
def test_every_command_parses(words: list[str]) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    commands[words[0]].make_context(words[0], words[1:], resilient_parsing=False)


def test_every_program_and_target_exists() -> None:
    targets = (ROOT / "Makefile").read_text("utf-8")
    for words in LINES:
        if words[0] == "make":
            assert re.search(rf"^{re.escape(words[1])}:", targets, re.MULTILINE), words
        if words[:2] == ["python", "-m"]:
            assert find_spec(words[2]), words


def test_trainings_run_one_after_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """None finds the folder of one before it, unless it resumes that."""

    class TrainedError(Exception):
        pass

    def train(settings: TrainingSettings, *_: Any) -> None:
        if not settings.resume:
            runs.check_folder(settings.folder, overwrite=settings.overwrite)
        if not settings.folder.exists():
            with FolderLock(settings.folder) as lock:
                runs.start_folder(settings.folder, settings.to_json(), lock)
        written.append(settings.folder)
        raise TrainedError

    written: list[Path] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ran.training.run.train", train)
    for words in TRAININGS:
        result = CliRunner().invoke(app, ["train", *words])
        assert isinstance(result.exception, TrainedError), (words, result.output)
    assert len(written) == len(TRAININGS) > 8


def test_masks_are_drawn_from_what_is_there() -> None:
    """The Training block's animation has an image in the checkout, and a name of its own."""
    animated = [words for words in OF_RAN if "--gif" in words]
    outputs = [words[words.index("-o") + 1] for words in OF_RAN if "-o" in words]
    assert len(set(outputs)) == len(outputs)
    assert (ROOT / animated[0][2]).is_file()
    folders = [words[words.index("--output") + 1] for words in TRAININGS if "--output" in words]
    assert animated[0][1] in folders
