"""What the commands say of themselves: help, wrong usage, a shell's completion."""

import shlex

import pytest
import typer

import ran as package
from ran.cli import app

from .test_cli import ran, refused


def commands() -> dict[str, typer.core.TyperCommand]:
    return typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", commands())
def test_every_help_has_an_example_that_parses(name: str) -> None:
    help_text = commands()[name].help or ""
    examples = [line for line in help_text.split("\n") if "Example: " in line]
    assert examples, name
    for line in examples:
        program, command, *arguments = shlex.split(line.partition("Example: ")[2])
        assert (program, command) == ("ran", name)
        commands()[name].make_context(name, arguments, resilient_parsing=False)


@pytest.mark.parametrize("name", ["train", "eval"])
def test_the_help_of_data_says_every_form(name: str) -> None:
    option = next(each for each in commands()[name].params if each.name == "data")
    for kind in (
        *package.data._SMALL,
        "folder:PATH",
        "imagenet:PATH",
        "wds/NAME:PATH",
        "hfds/NAME",
    ):
        assert kind in option.help  # type: ignore[attr-defined]


def test_wrong_usage_is_one_line() -> None:
    refused(ran("paint"), "ran: ", "'paint'")
    refused(ran("predict", "a", "--topk", "many"), "ran predict: ", "--topk")
    refused(ran("masks", "a", "b"), "--output")
    refused(ran("info", "--verbose"), "--verbose")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ran ev", ["eval"]),
        ("ran eval runs --data cif", ["cifar10:", "cifar100:"]),
        ("ran train --data w", ["wds/"]),
        ("ran predict runs a.png --device cu", ["cuda", "cuda:0"]),
        ("ran export runs --ov", ["--overwrite"]),
    ],
)
def test_bash_completes(words: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    environment = {
        "_RAN_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    result = CliRunner().invoke(app, [], prog_name="ran", env=environment)
    assert result.stdout.split() == expected
