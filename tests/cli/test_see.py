"""Tests of the commands that look at a network: eval, predict, masks, export, info."""

import csv
import json
import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import ran as package
from ran.data import ImageData, load_data
from ran.evaluation import evaluation as ran_evaluation
from ran.files import replacing, stopping_cleanly
from ran.weights.network_card import load_network, save_network
from tests.tiny import TINY_OPTIONS, make_folder, random_image

from .test_cli import ran, refused


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with images at two depths, one hidden, and a file that is none."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name in ("b.png", "a.jpg", "more/b.png", ".hidden.png"):
        random_image((20, 16), len(name)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_eval_prints_scores_and_draws_the_confusion(checkpoint: Path, tmp_path: Path) -> None:
    data = make_folder(tmp_path / "pets")
    picture = tmp_path / "confusion.png"
    arguments = ("eval", checkpoint, "--data", f"folder:{data}", "--confusion", picture)
    result = ran(*arguments)
    assert result.exit_code == 0, result.output
    for word in ("cat", "dog", "top-1", "top-5 100.00%", "images/s", "8 images", str(picture)):
        assert word in result.stdout.replace("\n", "")
    with Image.open(picture) as opened:
        assert opened.width > 700
    before = picture.read_bytes()
    refused(ran(*arguments), str(picture), "--overwrite")
    assert picture.read_bytes() == before

    result = ran(*arguments, "--json", "--no-picture", "--size", 24, "--tta", "flip")
    content = json.loads(result.stdout)
    assert (content["images"], content["image_size"], content["tta"]) == (8, 24, "flip")
    assert sum(row["images"] for row in content["classes"]) == 8
    assert picture.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data", "digits"], ["digits", "expected classes of the network (cat, dog)"]),
        (["--data", "folder:/nowhere/at/all"], ["/nowhere/at/all", "expected a folder"]),
        (["--data", "folder:PETS", "--size", "2"], ["image size 2", "expected at least"]),
        (["--data", "folder:PETS", "--tta", "spin"], ["tta", "'spin'"]),
        (["--data", "folder:PETS", "--size", "big"], ["--size", "integer"]),
        (["--data", "folder:PETS", "--confusion", "no/such/c.png"], ["no/such/c.png"]),
        (
            ["--data", "folder:PETS", "--confusion", "c.docx"],
            ["c.docx", "expected a name that ends in"],
        ),
        ([], ["--data"]),
    ],
)
def test_bad_evaluations_leave_nothing(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    expected: list[str],
) -> None:
    data = make_folder(tmp_path / "pets", count=1)
    monkeypatch.chdir(tmp_path)
    refused(
        ran("eval", checkpoint, *(text.replace("PETS", str(data)) for text in arguments)), *expected
    )
    assert [path.name for path in tmp_path.iterdir()] == ["pets"]


def test_eval_goes_on_beside_the_picture_of_the_last(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_folder(tmp_path / "pets", count=1)
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / "confusion.png"
    arguments = ("eval", checkpoint, "--data", f"folder:{data}", "--json")
    assert ran(*arguments).exit_code == 0
    picture.write_bytes(b"mine")
    again = ran(*arguments)
    assert again.exit_code == 0
    assert json.loads(again.stdout)["images"] == 2
    assert "confusion.png exists and stays" in again.stderr
    assert picture.read_bytes() == b"mine"
    refused(ran(*arguments, "--confusion", picture), "confusion.png: expected a new file")
    assert ran(*arguments, "--overwrite").exit_code == 0
    assert picture.read_bytes() != b"mine"


def test_eval_reads_the_test_part_alone_as_the_network_was_trained(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def look(*arguments: Any, **options: Any) -> ImageData:
        seen.update(options)
        return load_data(*arguments, **options)

    monkeypatch.setattr(ran_evaluation, "load_data", look)
    data = make_folder(tmp_path / "pets", parts=["val"])
    arguments = ("--no-picture", "--json", "--test-split", "val", "--num-classes", 2, "--size", 80)
    result = ran("eval", checkpoint, "--data", f"folder:{data}", *arguments)
    assert json.loads(result.stdout)["images"] == 8
    assert (seen["crop_fraction"], seen["options"].num_classes) == (1.0, 2)
    assert seen["options"].test_split == "val"


def test_eval_names_a_damaged_image(checkpoint: Path, tmp_path: Path) -> None:
    data = make_folder(tmp_path / "pets", count=2)
    image = data / "test" / "dog" / "1.png"
    image.write_bytes(image.read_bytes()[:99])
    result = ran("eval", checkpoint, "--data", f"folder:{data}", "--no-picture")
    refused(result, str(image), "expected a readable image")


@pytest.mark.parametrize("kind", ["folder", "imagenet"])
def test_eval_leaves_damaged_images_out_and_counts_them(
    checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    data = make_folder(tmp_path / "pets", count=3)
    for image in (data / "test" / "dog" / "1.png", data / "train" / "cat" / "0.png"):
        image.write_bytes(image.read_bytes()[:99])
    arguments = ("eval", checkpoint, "--data", f"{kind}:{data}", "--no-picture", "--batch-size", 1)
    if kind == "imagenet":
        refused(ran(*arguments), "1.png", "expected a readable image")
    content = json.loads(ran(*arguments, "--skip-unreadable", "--json").stdout)
    assert (content["images"], content["unreadable_images"]) == (5, 1)
    assert [row["images"] for row in content["classes"]] == [3, 2]
    assert "1 unreadable image left out" in ran(*arguments, "--skip-unreadable").stdout
    if kind == "imagenet":
        for image in (data / "test").glob("*/*"):
            image.write_bytes(b"")
        refused(ran(*arguments, "--skip-unreadable"), "can be read, found none")


def test_predict_goes_on_without_damaged_images_when_told_to(
    checkpoint: Path, photos: Path
) -> None:
    damaged = photos / "aa.png"
    damaged.write_bytes(b"no image")
    arguments = ("predict", checkpoint, photos, "--batch-size", 1)
    refused(ran(*arguments), str(damaged), "expected a readable image")
    going_on = (*arguments, "--skip-unreadable")
    result = ran(*going_on, "--json", "--masks", photos.parent / "masks")
    assert result.exit_code == 0
    content = json.loads(result.stdout)
    names = ("a.jpg", "aa.png", "b.png", "more/b.png")
    assert [entry["image"] for entry in content] == [str(photos / name) for name in names]
    assert [len(entry["classes"]) for entry in content] == [2, 0, 2, 2]
    assert [str(damaged) in entry.get("error", "") for entry in content] == [0, 1, 0, 0]
    assert len(list((photos.parent / "masks").rglob("*.png"))) == 3
    for form in ("--csv", "--deploy"):
        result = ran(*going_on, form)
        assert result.stderr.startswith(f"1 unreadable image left out, first {damaged}: ")
        assert "aa.png" not in result.stdout
    refused(ran(*arguments[:2], damaged, "--skip-unreadable"), "at least", str(damaged))
    missing = photos / "no.png"
    refused(ran(*going_on, missing), f"{missing}: expected an image, found nothing there")


def test_predict_takes_folders_and_prints_csv_and_json(checkpoint: Path, photos: Path) -> None:
    single = photos / "notes.png"
    random_image((9, 9), 5, "L").save(single)
    rows = list(csv.reader(ran("predict", checkpoint, photos, "--csv").stdout.splitlines()))
    assert rows[0] == ["image", "rank", "class", "probability"]
    names = [str(photos / name) for name in ("a.jpg", "b.png", "more/b.png", "notes.png")]
    assert [row[0] for row in rows[1:]] == [name for name in names for _ in range(2)]
    assert [row[1] for row in rows[1:3]] == ["1", "2"]
    assert float(rows[1][3]) + float(rows[2][3]) == pytest.approx(1, abs=1e-5)

    content = json.loads(ran("predict", checkpoint, photos, "--json", "--topk", 1).stdout)
    assert [entry["image"] for entry in content] == names
    assert content[0]["classes"][0]["class"] == rows[1][2]
    assert content[0]["classes"][0]["probability"] == pytest.approx(float(rows[1][3]), abs=1e-6)


def test_tables_cut_no_path_short(checkpoint: Path, photos: Path) -> None:
    long = photos / ("long-" * 30 + "1.png")
    (photos / "b.png").rename(long)
    shown = ran("predict", checkpoint, long).stdout
    assert "…" not in shown
    cells = [line.split("│")[1].strip() for line in shown.splitlines() if "│" in line]
    assert str(long) in "".join(cells)


def test_predict_draws_masks_beside_each_other(checkpoint: Path, photos: Path) -> None:
    output = photos.parent / "masks"
    arguments = ("predict", checkpoint, photos / "b.png", photos, "--masks", output)
    assert ran(*arguments).exit_code == 0
    drawn = {str(path.relative_to(output)) for path in output.rglob("*.png")}
    assert drawn == {"a.png", "b.png", "more/b.png"}
    before = (output / "a.png").read_bytes()
    refused(ran(*arguments), "expected a new file, it exists")
    assert (output / "a.png").read_bytes() == before
    assert ran(*arguments, "--overwrite").exit_code == 0
    refused(ran(*arguments[:-1], photos / "b.png"), str(photos / "b.png"), "it is a file")


def test_bad_predictions(checkpoint: Path, photos: Path) -> None:
    refused(ran("predict", checkpoint, photos, "--csv", "--json"), "--csv")
    empty = photos.parent / "empty"
    empty.mkdir()
    refused(ran("predict", checkpoint, empty), str(empty), "found none")
    (photos / "c.png").write_bytes(b"\x89PNG no more")
    result = ran("predict", checkpoint, photos, "--masks", photos.parent / "masks", "--csv")
    refused(result, str(photos / "c.png"), "expected a readable image")
    assert not (photos.parent / "masks").exists()


def test_masks_of_several_checkpoints_are_animated(checkpoint: Path, photos: Path) -> None:
    output = photos.parent / "masks.gif"
    paths = (checkpoint, checkpoint / "model.safetensors", photos / "b.png")
    refused(ran("masks", *paths, "-o", photos.parent / "masks.png"), "--gif")
    refused(ran("masks", *paths, "--gif", "-o", photos.parent / "masks.png"), "ends in .gif")
    refused(ran("masks", *paths[:2], "--gif", "-o", output), "at least one image")
    refused(ran("masks", *paths, "--gif", "-o", output, "--modules", "x*"), "'x*'")
    assert not output.exists()
    assert ran("masks", *paths, "--gif", "-o", output).exit_code == 0
    with Image.open(output) as animation:
        assert animation.n_frames == 2


def test_masks_of_weights_that_are_no_numbers_are_not_drawn(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    network, card = load_network(checkpoint)
    with torch.no_grad():
        network.get_parameter("stem.conv.weight")[0, 0, 0, 0] = float("nan")
    save_network(network, card, tmp_path / "bad")
    output = tmp_path / "masks.png"
    result = ran("masks", tmp_path / "bad", photos / "b.png", "-o", output)
    refused(result, "expected finite numbers, stem.conv.weight has NaN")
    assert not output.exists()


@pytest.mark.parametrize("output", ["masks.png", "masks.gif"])
def test_masks_that_are_no_numbers_are_not_drawn(
    checkpoint: Path, photos: Path, tmp_path: Path, output: str
) -> None:
    network, card = load_network(checkpoint)
    # Finite itself, and NaN once its root is taken.
    network.get_buffer("stem.norm.running_var").fill_(-1)
    save_network(network, card, tmp_path / "bad")
    options = ("--gif",) if output.endswith("gif") else ()
    result = ran("masks", tmp_path / "bad", photos / "b.png", "-o", tmp_path / output, *options)
    refused(result, "expected finite outputs")
    assert not (tmp_path / output).exists()


def test_a_folder_of_save_pretrained_goes_through_every_command(
    photos: Path, tmp_path: Path
) -> None:
    model = package.create_model("attention56_cifar", num_classes=2, **TINY_OPTIONS)
    folder = package.save_pretrained(model, tmp_path / "net").parent
    data = make_folder(tmp_path / "pets", classes=("0", "1"))
    image, out = photos / "b.png", tmp_path / "out"
    for arguments in (
        ("info", folder),
        ("predict", folder, image),
        ("masks", folder, image, "-o", out.with_suffix(".png")),
        ("export", folder, "-o", out.with_suffix(".pt2")),
        ("eval", folder, "--data", f"folder:{data}", "--no-picture"),
    ):
        result = ran(*arguments)
        assert result.exit_code == 0, result.output
        names, images = result.stderr.splitlines()
        assert names == (
            f"ran: {folder / 'model.json'}: no class names are known, classes are called 0 to 1"
        )
        assert images.startswith(f"ran: {folder / 'model.json'}: no preprocessing is known")


def test_a_wrong_option_in_a_card_is_named_with_its_file(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(checkpoint, folder)
    card = json.loads((folder / "model.json").read_text())
    card["options"]["depht"] = 3
    (folder / "model.json").write_text(json.dumps(card))
    refused(ran("info", folder), str(folder), "depht")


def test_export_writes_and_refuses(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.pt2"
    result = ran("export", checkpoint, "-o", output)
    assert result.exit_code == 0, result.output
    assert "Checked on batches of 1 and 3 images" in result.stdout
    before = output.read_bytes()
    refused(ran("export", checkpoint, "-o", output), str(output), "--overwrite")
    refused(ran("export", checkpoint, "-o", tmp_path / "m.xml"), "ends in .onnx or .pt2")
    refused(ran("export", tmp_path, "-o", tmp_path / "m.pt2"), "expected a checkpoint")
    assert output.read_bytes() == before
    assert list(tmp_path.iterdir()) == [output]


def test_info_of_the_installation_and_of_a_checkpoint(checkpoint: Path) -> None:
    kernels = ran("info").stdout
    for word in ("operators", "attention_gate", "packages of ran", "timm", "lightning"):
        assert word in kernels
    result = ran("info", checkpoint)
    assert result.exit_code == 0
    for word in (
        "attention56_cifar_pool",
        "stem_width=8",
        "2: cat, dog",
        "16×16",
        "0.25",
        "for one such image",
    ):
        assert word in result.stdout
    refused(ran("info", checkpoint / "no.ckpt"), "expected a checkpoint")


def test_the_commands_are_functions_of_the_package() -> None:
    for name in ("evaluate", "predict", "plot_masks", "export"):
        assert callable(getattr(package, name))
        assert name in dir(package)
    with pytest.raises(AttributeError, match="evaluation_of"):
        getattr(package, "evaluation_of")  # noqa: B009


def test_a_terminated_write_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"mine")
    before = signal.getsignal(signal.SIGTERM)

    def write() -> None:
        with stopping_cleanly(), replacing(path) as partial:
            partial.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        write()
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize(
    "arguments",
    [
        ("masks", "PHOTO", "-o", "out.png"),
        ("masks", "CHECKPOINT", "PHOTO", "--gif", "-o", "out.gif"),
        ("export", "-o", "out.pt2"),
    ],
)
def test_a_full_disk_leaves_no_part_of_a_file(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    photo = tmp_path / "photo.png"
    random_image((8, 8), 0).save(photo)
    monkeypatch.chdir(tmp_path)
    places = {"PHOTO": photo, "CHECKPOINT": checkpoint}
    words = [places.get(word, word) for word in arguments[1:]]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        result = ran(arguments[0], checkpoint, *words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    refused(result, arguments[-1], "cannot write")
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "ran: interrupted\n"),
        (OSError(40, "Too many links", "x"), 2, "ran: [Errno 40] Too many links: 'x'\n"),
        (torch.OutOfMemoryError("CUDA"), 2, "ran: out of the GPU's memory: expected a smaller"),
    ],
)
def test_what_stops_any_command_is_one_line(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("ran.evaluation.prediction.predict", fail)
    result = ran("predict", checkpoint, checkpoint)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == 1
