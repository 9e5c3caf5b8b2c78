"""Names that are hard to print, empty ones, and outputs that take nothing."""

import csv
import io
import json
import os
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import ran as package
from ran.cli import app
from ran.errors import UserError
from ran.files import read_json, replacing, write_json
from ran.pictures.fonts import legible
from ran.pictures.plots import plot_confusion, plot_curves
from ran.text import plural, printable
from ran.training.callbacks import COLUMNS, MetricsTable
from ran.training.checkpoints import CheckpointFiles
from ran.training.settings import make_settings
from ran.weights.network_card import load_network, save_network
from tests.tiny import TINY, make_folder, random_image

from .test_cli import ran, refused

#: No UTF-8, an escape that terminals obey, two lines, dollars, and characters without a glyph.
NAMES = ("caf\udce9.png", "a\x1b[2J.png", "two\nlines.png", "$x_1$.png", "猫.png", "🦊.png")


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (1, "epoch", "1 epoch"),
        (20, "epoch", "20 epochs"),
        (2, "batch", "2 batches"),
        (0, "image", "0 images"),
        (2000, "unreadable image", "2,000 unreadable images"),
        (1, "class", "1 class"),
        (3, "class", "3 classes"),
        (2, "process", "2 processes"),
    ],
)
def test_plurals(count: int, noun: str, text: str) -> None:
    assert plural(count, noun) == text


def test_one_is_no_plural_in_what_is_printed(tmp_path: Path, checkpoint: Path) -> None:
    root = make_folder(tmp_path / "pets", count=2)
    (root / "test" / "dog" / "0.png").write_bytes(b"")
    data = ("--data", f"folder:{root}", "--skip-unreadable")
    shown = ran("eval", checkpoint, *data, "--no-picture").stdout
    assert "1 unreadable image left out" in shown
    result = ran("predict", checkpoint, root / "test", "--skip-unreadable")
    assert result.stderr.startswith("1 unreadable image left out, first ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain é 猫 \xa0 🦊", "plain é 猫 \xa0 🦊"),
        ("caf\udce9", r"caf\xe9"),
        ("a\nb\x1b[2J", r"a\nb\x1b[2J"),
        ("lone \ud800", r"lone \ud800"),
        ("gnp\u202e.exe\u2028", r"gnp\u202e.exe\u2028"),
    ],
)
def test_printable_text_is_one_line_of_utf8(text: str, expected: str) -> None:
    assert printable(text) == expected
    printable(text).encode("utf-8")


def test_json_holds_any_name_as_text(tmp_path: Path) -> None:
    content = {"format": "x", "version": 1, "names": list(NAMES)}
    write_json(tmp_path / "x.json", content)
    (tmp_path / "x.json").read_text("utf-8")
    assert read_json(tmp_path / "x.json", format="x", version=1) == content


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in NAMES:
        random_image((20, 20), 0).save(folder / "x.png")
        (folder / "x.png").rename(folder / name)
    return folder


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_any_name_is_printed(checkpoint: Path, photos: Path, encoding: str) -> None:
    def printed(*options: str) -> str:
        words = ["predict", str(checkpoint), str(photos), *options]
        result = CliRunner(charset=encoding).invoke(app, words)
        assert (result.exit_code, result.stderr_bytes) == (0, b"")
        return result.stdout_bytes.decode(encoding)

    names = {Path(each["image"]).name for each in json.loads(printed("--json"))}
    assert names == set(NAMES)
    if encoding == "ascii":
        return
    rows = list(csv.reader(io.StringIO(printed("--csv"))))
    assert len(rows) == 1 + 2 * len(NAMES)
    assert any(row[0].endswith("\n" + "lines.png") for row in rows)  # quoted, as CSV has it
    table = printed()
    assert r"caf\xe9.png" in table.replace("\n", "")
    assert "\x1b" not in table


def test_masks_of_any_name_are_drawn_without_a_word(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = ran("predict", checkpoint, photos, "--masks", tmp_path / "masks")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert {path.name for path in (tmp_path / "masks").iterdir()} == set(NAMES)


def test_class_names_of_any_script_are_drawn_without_a_word(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cat, dog = "猫", "犬\udcff"
        path, matrix = tmp_path / "x.png", np.eye(2, dtype=int)
        plot_confusion(path, matrix, [cat, dog], [(cat, dog, 1)], title="宠物")
    assert Image.open(tmp_path / "x.png").width > 300


def test_what_no_font_has_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ran.pictures.fonts._drawable", lambda: frozenset(map(ord, "abc é")))
    assert legible("a猫\nb犬🦊é") == "a\\u732b\nb\\u72ac\\U0001f98aé"


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "RUN", ""),
        ("predict", "", "x.png"),
        ("predict", "RUN", "x.png", "--masks="),
        ("eval", "RUN", "--data", "digits", "--confusion", ""),
        ("masks", "RUN", "x.png", "-o", ""),
        ("export", "RUN", "-o", ""),
        ("train", "digits", "--output", ""),
        ("info", ""),
    ],
)
def test_empty_arguments_are_no_current_folder(
    arguments: tuple[str, ...], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_image((20, 20), 0).save(tmp_path / "x.png")
    monkeypatch.chdir(tmp_path)
    words = [str(checkpoint) if word == "RUN" else word for word in arguments]
    refused(ran(*words), "expected a value after it, got an empty one")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_empty_paths_are_named_by_the_functions_too(checkpoint: Path, tmp_path: Path) -> None:
    image = tmp_path / "x.png"
    random_image((20, 20), 0).save(image)
    calls: dict[str, Callable[[], Any]] = {
        "images": lambda: package.predict(checkpoint, ""),
        "checkpoint": lambda: package.predict("", image),
        "masks": lambda: package.predict(checkpoint, image, masks=""),
        "confusion": lambda: package.evaluate(checkpoint, "digits", confusion=""),
        "output": lambda: package.plot_masks(checkpoint, image, ""),
        "folder": lambda: package.save_pretrained(package.create_model("cbam_resnet18"), ""),
        "folder_or_repo": lambda: package.from_pretrained(""),
    }
    for name, call in calls.items():
        with pytest.raises(UserError, match=rf"^{name}: expected a path, got an empty one$"):
            call()
    with pytest.raises(UserError, match=r"^output: expected a path"):
        make_settings({**TINY, "output": ""})


@pytest.mark.parametrize("size", [100_000, 10**12, 8193])
def test_sizes_that_no_memory_holds_are_refused_at_once(
    size: int, checkpoint: Path, tmp_path: Path
) -> None:
    expected = f"image_size: expected 1 to 8192 pixels, got {size}"
    output = ("--output", tmp_path / "run")
    refused(ran("train", "digits", "--set", f"image_size={size}", *output), expected)
    refused(ran("eval", checkpoint, "--data", "digits", "--size", size), expected)
    refused(ran("eval", checkpoint, "--data", f"folder:{tmp_path}", "--size", size), expected)
    refused(ran("export", checkpoint, "--size", size, "-o", tmp_path / "x.pt2"), expected)
    network, card = load_network(checkpoint)
    save_network(network, card, tmp_path / "edited")
    path = tmp_path / "edited" / "model.json"
    content = json.loads(path.read_text())
    content["preprocessing"]["image_size"] = size
    path.write_text(json.dumps(content))
    random_image((20, 20), 0).save(tmp_path / "x.png")
    refused(ran("predict", tmp_path / "edited", tmp_path / "x.png"), str(path), expected)


def rows(folder: Path) -> None:
    table = MetricsTable(folder / "x.csv")
    table.rows = [dict.fromkeys(COLUMNS, 0.5)] * 1000
    table._write()


def write_card(folder: Path, checkpoint: Path) -> None:
    network, card = load_network(checkpoint)
    save_network(network, card, folder)


def draw_curves(path: Path) -> None:
    row = {"epoch": 1, "train_loss": 1.0, "test_loss": 1.0, "test_accuracy": 0.5}
    plot_curves(path, [row], title="x")


def draw_masks(path: Path, checkpoint: Path) -> None:
    package.plot_masks(checkpoint, path.parent.parent / "image.png", path)


#: By the name of the file they write, given its path and a network's: every writer there is.
WRITERS: dict[str, Callable[[Path, Path], Any]] = {
    "x.ckpt": lambda path, _: CheckpointFiles().save_checkpoint({"x": torch.zeros(10_000)}, path),
    "model.safetensors": lambda path, checkpoint: write_card(path.parent, checkpoint),
    "x.json": lambda path, _: write_json(path, {"names": ["cat"] * 1000}),
    "x.csv": lambda path, _: rows(path.parent),
    "x.png": lambda path, _: draw_curves(path),
    "x.pdf": lambda path, _: draw_curves(path),
    "x.svg": lambda path, _: draw_curves(path),
    "masks.gif": draw_masks,
    "masks.png": draw_masks,
    "x.pt2": lambda path, checkpoint: package.export(checkpoint, path),
    "x.onnx": lambda path, checkpoint: package.export(checkpoint, path),
}


@pytest.mark.parametrize("free", [0, 1000])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_with_the_file_and_the_reason(
    name: str, free: int, checkpoint: Path, tmp_path: Path
) -> None:
    """Where the first byte finds no room, and a later one."""
    if free and name not in ("x.ckpt", "model.safetensors", "x.json", "x.csv", "x.png"):
        pytest.skip("as with none, and it takes seconds")
    if name.endswith(".onnx"):
        pytest.importorskip("onnxscript")
    random_image((20, 20), 0).save(tmp_path / "image.png")
    folder = tmp_path / "full"
    folder.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        with pytest.raises(UserError) as caught:
            WRITERS[name](folder / name, checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value).startswith(f"{folder / name}: cannot write the ")
    assert str(caught.value).endswith(": File too large")  # what a limit of this kind is called
    assert list(folder.iterdir()) == []


def test_what_is_no_writers_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "x"):
        (tmp_path / "other").read_text()
    with pytest.raises(RuntimeError, match="shapes"), replacing(tmp_path / "x"):
        raise RuntimeError("shapes")
    with pytest.raises(UserError, match="no/x: cannot write the file: No such file or directory"):
        write_json(tmp_path / "no" / "x", {})


def test_an_output_that_takes_nothing_is_one_line() -> None:
    command = [sys.executable, "-m", "ran", "train", "--list"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert ended.returncode == 2
    assert ended.stderr == b"ran: [Errno 28] No space left on device\n"
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does once it has enough
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")
