"""Files that are rare, damaged or made to harm: each has a known right value, or is one line."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.readers import reader_wds

from ran.data import Preprocessing, load_data, read_image
from ran.data.decoding import check_images
from ran.data.listing import image_files, is_hidden
from ran.data.options import DataOptions
from ran.data.readers import _open_images_here
from ran.errors import UserError
from tests.tiny import make_folder, random_image

from .hostile import Hostile, corpus

CORPUS = {entry.name: entry for entry in corpus()}


def colours(values: np.ndarray) -> np.ndarray:
    return values if values.ndim == 3 else np.repeat(values[..., None], 3, -1)


@pytest.mark.parametrize("entry", CORPUS.values(), ids=CORPUS)
def test_a_hostile_file_has_its_value_or_is_one_line(entry: Hostile, tmp_path: Path) -> None:
    path = tmp_path / entry.name
    entry.write(path)
    _, (error,) = check_images([path], skip=True)
    if isinstance(entry.right, str):
        with pytest.raises(UserError) as caught:
            read_image(path, 3)
        assert str(caught.value).startswith(f"{path}: expected a")
        assert entry.right in str(caught.value)
        assert "\n" not in str(caught.value)
        assert str(error) == str(caught.value)  # found before the training, not in its tenth epoch
        return
    found = read_image(path, 3).permute(1, 2, 0).numpy().astype(int)
    expected = colours(entry.right)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1  # of JPEG, and of colours that are converted
    assert error is None
    assert read_image(path, 1).shape == (1, *found.shape[:2])


def test_files_that_are_read_keep_their_depth_in_grayscale_sets(tmp_path: Path) -> None:
    for name in ("16.png", "16.tif", "float-said.tif", "12.tif"):
        CORPUS[name].write(tmp_path / name)
        grayscale, _ = check_images([tmp_path / name])
        assert grayscale
        assert read_image(tmp_path / name, 1).flatten().tolist() == [0, 85, 170, 255]


def resized_whole(preprocessing: Preprocessing, images: torch.Tensor) -> torch.Tensor:
    """What ``Preprocessing.resize`` is: resized as a whole, then cropped."""
    from torchvision.transforms.v2 import functional as tvf

    size = preprocessing.image_size
    height, width = images.shape[-2:]
    scale = round(size / preprocessing.crop_fraction) / min(height, width)
    sides = [max(size, round(side * scale)) for side in (height, width)]
    return tvf.center_crop(tvf.resize(images, sides, antialias=True), [size, size])


@pytest.mark.parametrize("size", [(30, 40), (97, 13), (5, 80), (16, 1), (1, 1), (500, 333)])
def test_ordinary_images_are_resized_to_the_bit_as_a_whole(size: tuple[int, int]) -> None:
    images = torch.randint(256, (3, *size), dtype=torch.uint8)
    for preprocessing in (
        Preprocessing(16, 0.875, (0.5,) * 3, (0.5,) * 3),
        Preprocessing(64, 1.0, (0.5,) * 3, (0.5,) * 3),
    ):
        assert torch.equal(preprocessing.resize(images), resized_whole(preprocessing, images))


@pytest.mark.parametrize("size", [(3, 200), (201, 4), (7, 400), (1, 3000), (10, 2001)])
def test_long_images_lose_their_ends_alone(size: tuple[int, int]) -> None:
    rows, columns = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    # falls off from the middle, so that a pixel's shift would show
    far = ((rows - size[0] / 2 + 0.5).abs() + (columns - size[1] / 2 + 0.5).abs()) / min(size)
    images = (255 / (1 + far)).to(torch.uint8)[None]
    preprocessing = Preprocessing(16, 0.875, (0.5,), (0.5,))
    found = preprocessing.resize(images).int()
    assert (found - resized_whole(preprocessing, images).int()).abs().max() <= 2


def test_an_image_of_twenty_million_pixels_in_a_row_is_resized_in_no_more_memory() -> None:
    images = torch.zeros(1, dtype=torch.uint8).expand(3, 1, 20_000_000)  # itself in none
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert Preprocessing(224, 0.875, (0.5,) * 3, (0.5,) * 3).resize(images).shape == (3, 224, 224)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


HIDDEN = (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".thumbnails")


def test_what_systems_put_beside_images_is_no_class_and_no_image(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets")
    for part in ("train", "test"):
        for hidden in HIDDEN:
            for folder in (root / part, root / part / "cat"):
                (folder / hidden).mkdir()
                random_image((20, 18), 0).save(folder / hidden / "0-checkpoint.png")
        for name in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
            (root / part / "cat" / name).write_bytes(b"no image")
        (root / part / "Thumbs.db").write_bytes(b"no image")
    for kind in ("folder", "imagenet"):
        data = load_data(f"{kind}:{root}", 16)
        assert data.class_names == ("cat", "dog")
        assert (len(data.train), len(data.test)) == (8, 8)
    assert len(image_files(root)) == 16
    assert is_hidden("THUMBS.DB")
    assert not is_hidden("thumbs")
    # but what somebody asks for by its name
    assert len(image_files(root / "train" / ".ipynb_checkpoints")) == 1


def test_links_are_followed_once(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets")
    (root / "train" / "cat" / "again").symlink_to(root / "train")
    (root / "train" / "cat" / "more").symlink_to(root / "test" / "cat")
    assert len(image_files(root / "train" / "cat")) == 4 + 4 + 4  # its own, the dogs', the others


def test_a_classs_name_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", classes=("cat", "dog", "e\udcff"))
    with pytest.raises(UserError, match="expected a class's name in UTF-8"):
        load_data(f"folder:{root}", 16)


def test_long_images_are_trained_on(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets")
    Image.new("L", (1, 3_000_000)).save(root / "train" / "cat" / "0.png")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = load_data(f"imagenet:{root}", 64, "scale-flip", DataOptions(workers=0))
    assert data.train.__getitems__([0])[0].shape == (1, 3, 64, 64)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


def test_timms_shards_are_opened_as_files_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(reader_wds, "Image", Image)
    monkeypatch.setattr(reader_wds, "getfirst", lambda sample, key: sample[key], raising=False)
    _open_images_here()

    def decoded(name: str) -> Image.Image:
        CORPUS[name].write(tmp_path / name)
        sample = {"jpg": (tmp_path / name).read_bytes(), "cls": b"1"}
        return reader_wds._decode(sample)["jpg"]

    assert np.asarray(decoded("16.png"))[0, :, 0].tolist() == [0, 85, 170, 255]
    for name in ("postscript.png", "float.tif"):
        with pytest.raises(UserError, match=r"image: expected a readable image"):
            decoded(name)


#: Runs every command on the corpus in one process; prints what each ended with, and the memory.
PROGRAM = """
import json, resource, sys
from pathlib import Path
from typer.testing import CliRunner
from ran.cli import app

def ran(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return {"code": result.exit_code, "out": result.stdout, "err": result.stderr}

root, checkpoint, tiny, *files = sys.argv[1:]
root, tiny = Path(root), json.loads(tiny)
folder, found = root / "train" / "cat", {}
ran("predict", checkpoint, root / "test" / "dog")
ran("train", *tiny, "--data", f"folder:{root / 'calm'}", "--output", root / "calm-run")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found["predict"] = ran("predict", checkpoint, folder, "--skip-unreadable", "--json")
found["strict"] = ran("predict", checkpoint, folder)
for name in files:
    found[name] = ran("masks", checkpoint, folder / name, "-o", root / "masks.png", "--overwrite")
for kind in ("folder", "imagenet"):
    data = ("--data", f"{kind}:{root}")
    found[f"eval {kind}"] = ran("eval", checkpoint, *data, "--skip-unreadable", "--no-picture")
    found[f"eval {kind} strict"] = ran("eval", checkpoint, *data, "--no-picture")
    output = ("--output", root / f"{kind}-run")
    found[f"train {kind} strict"] = ran("train", *tiny, *data, *output)
found["train"] = ran("train", *tiny, "--data", f"folder:{root}", *output, "--skip-unreadable")
found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps(found))
"""
#: Drawn by ``ran masks``, of which each picture takes a second.
DRAWN = ("float.tif", "12-in-16.png", "long.png", "pipe.png", "postscript.png", "bomb.png")


def test_no_command_breaks_hangs_or_takes_memory(checkpoint: Path, tmp_path: Path) -> None:
    from tests.cli.test_cli import TINY_ARGUMENTS

    root = make_folder(tmp_path / "set")
    make_folder(root / "calm")
    for part in ("train", "test"):
        for entry in CORPUS.values():
            entry.write(root / part / "cat" / entry.name)
    tiny = [*TINY_ARGUMENTS, "--epochs", "1", "--set", "workers=0"]
    command = [sys.executable, "-c", PROGRAM, str(root), str(checkpoint), json.dumps(tiny), *DRAWN]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "Traceback" not in ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found.pop("memory") < 500 << 10  # KiB; one of these images took 4.7 GB
    refused = {name for name, entry in CORPUS.items() if isinstance(entry.right, str)}

    result = found.pop("predict")
    listed = {Path(each["image"]).name: each for each in json.loads(result["out"])}
    assert {name for name, each in listed.items() if "error" in each} == refused
    for name, each in listed.items():
        assert len(each["classes"]) == (0 if name in refused else 2), name
    assert f"{len(refused)} unreadable images left out, first " in result["err"]
    for name, result in found.items():
        strict = name == "strict" or name.endswith(" strict") or name in refused
        assert result["code"] == (2 if strict else 0), (name, result)
        assert "Traceback" not in result["err"]
        if strict:
            assert result["err"].count("\n") == 1, (name, result)
        elif name not in CORPUS:
            assert f"{len(refused) * (2 if 'train' in name else 1)} unreadable images" in (
                result["out"].replace("\n", " ")
            ), (name, result)
