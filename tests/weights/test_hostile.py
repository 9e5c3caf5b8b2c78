"""Hostile files, by every reader: one line that names the file and what is wrong, and at once."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ran
from ran.cli.description import describe
from ran.data import Preprocessing
from ran.errors import UserError
from ran.evaluation.prediction import predict
from ran.models.size import attention_parameters, cbam_parameters
from ran.weights.network_card import NetworkCard, load_network
from tests.tiny import random_image

from .hostile import (
    CARD,
    CARDS,
    MIXED,
    SAFE,
    TENSORS,
    VICTIM,
    edited,
    write_bomb,
    write_checkpoint,
    write_folder,
    write_pipe,
)

# PyTorch's words about sparse, nested and quantised tensors.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

#: Bytes that a bomb unpacks to: enough to show, little enough to have.
BOMB = 64 << 20


def refused(read: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        read()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500
    return str(caught.value)


@pytest.mark.parametrize("kind", [*TENSORS, *MIXED])
def test_tensors_that_are_no_weights_are_named(kind: str, tmp_path: Path) -> None:
    path, change = tmp_path / "hostile.ckpt", {**TENSORS, **MIXED}[kind]
    write_checkpoint(path, change)
    said = refused(lambda: load_network(path))
    assert said.startswith(f"{path}: ")
    assert VICTIM in said
    assert re.search(kind, said), said
    if kind in SAFE:
        write_folder(tmp_path / "folder", change)
        for read in (load_network, ran.from_pretrained):
            said = refused(lambda read=read: read(tmp_path / "folder"))  # type: ignore[misc]
            assert said.startswith(f"{tmp_path / 'folder' / 'model.safetensors'}: ")
            assert VICTIM in said
            assert re.search(kind, said), said


@pytest.mark.parametrize("kind", TENSORS)
def test_nor_are_they_loaded_into_a_network(kind: str, tmp_path: Path) -> None:
    path, model = tmp_path / "hostile.ckpt", CARD.build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    write_checkpoint(path, TENSORS[kind])
    said = refused(lambda: ran.load_checkpoint(model, path))
    assert said.startswith(f"{path}: ")
    assert VICTIM in said
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(("where", "value", "said"), CARDS, ids=str)
def test_a_card_out_of_range_is_named(
    where: tuple[str, ...], value: Any, said: str, tmp_path: Path, card_folder: Path
) -> None:
    content = edited(where, value)
    weights = card_folder / "model.safetensors"
    (card_folder / "model.json").write_text(json.dumps(content))
    for read in (load_network, ran.from_pretrained):
        found = refused(lambda read=read: read(card_folder))  # type: ignore[misc]
        assert found.startswith((f"{card_folder / 'model.json'}: ", f"{weights}: "))
        assert said in found
    path = tmp_path / "hostile.ckpt"
    torch.save({"ran_network": content, "state_dict": {}}, path)
    if where != ("preprocessing", "image_size") or value != 1:  # found with the network alone
        assert said in refused(lambda: load_network(path))


def test_names_of_another_source_with_other_shapes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scalars.pth"
    names = (
        "attention_module1.trunk_branches.0.bn1.weight",
        "a.middle_2r_blocks.0",
        "conv1.0.weight",
    )
    torch.save({name: torch.tensor(1.0) for name in names}, path)
    model = ran.create_model("attention92_cifar_wide", graph="additive", pool="torch")
    assert refused(lambda: ran.load_checkpoint(model, path)).startswith(f"{path}: expected ")


@pytest.fixture(scope="module")
def card_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    write_folder(folder)
    return folder


@pytest.mark.parametrize("suffix", [".ckpt", ".pth"])
def test_a_bomb_is_not_unpacked(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"bomb{suffix}"
    write_bomb(path, BOMB)
    said = [refused(lambda: ran.load_checkpoint(CARD.build(), path))]
    if suffix == ".ckpt":
        said.append(refused(lambda: load_network(path)))
    for line in said:
        assert re.search(rf"{path.name}: .* {path.stat().st_size:,} bytes would unpack to", line)
    numbers = tmp_path / "bomb.npz"
    np.savez_compressed(numbers, zeros=np.zeros(BOMB, np.uint8))
    said = [refused(lambda: ran.load_checkpoint(CARD.build(), numbers))]
    assert "bytes would unpack to" in said[0]


def test_parts_that_are_packed_and_no_smaller_are_unpacked(tmp_path: Path) -> None:
    path, again = tmp_path / "a.pth", tmp_path / "b.pth"
    state = CARD.build().state_dict()
    torch.save(state, path)
    packed = 0
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(again, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            small = len(content) < 64  # which deflating makes larger
            packed += small
            target.writestr(
                entry.filename, content, zipfile.ZIP_DEFLATED if small else zipfile.ZIP_STORED
            )
    assert packed
    model = CARD.build()
    ran.load_checkpoint(model, again)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors", "x.npz", "x.pth"])
def test_a_pipe_is_not_waited_for(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write_pipe(path)
    said = [refused(lambda: ran.load_checkpoint(CARD.build(), path))]
    if path.suffix in (".ckpt", ".safetensors"):
        said.append(refused(lambda: load_network(path)))
    for line in said:
        assert re.search(rf"{name}: expected a .*, found a pipe", line)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_nor_in_a_folder(name: str, tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / name).unlink()
    write_pipe(tmp_path / name)
    for read in (load_network, ran.from_pretrained, describe):
        said = refused(lambda read=read: read(tmp_path))  # type: ignore[misc]
        assert re.search(rf"{name}: expected .*, found a pipe", said)


def test_nor_as_an_image(tmp_path: Path, card_folder: Path) -> None:
    (card_folder / "model.json").write_text(json.dumps(CARD.to_json()))
    write_pipe(tmp_path / "image.png")
    for given in (tmp_path, tmp_path / "image.png"):
        said = refused(lambda given=given: predict(card_folder, given))  # type: ignore[misc]
        assert said == f"{tmp_path / 'image.png'}: expected an image, found a pipe"
    said = refused(lambda: predict(card_folder, os.devnull))
    assert said == f"{os.devnull}: expected an image, found a device"


@pytest.mark.parametrize("command", ["predict", "info", "eval"])
def test_the_commands_say_it_in_one_line(command: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "run", TENSORS["NaN"])
    random_image((20, 18), 0).save(tmp_path / "image.png")
    rest = {"predict": [str(tmp_path / "image.png")], "info": [], "eval": ["--data", "digits"]}
    run = subprocess.run(
        [sys.executable, "-m", "ran", command, str(tmp_path / "run"), *rest[command]],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr == (
        f"ran: {tmp_path / 'run' / 'model.safetensors'}: expected finite numbers, {VICTIM} has NaN "
        "or infinity in 1 of 96\n"
    )


@pytest.mark.parametrize("field", ["mean", "std"])
def test_preprocessing_is_checked_where_it_is_made(field: str) -> None:
    good: dict[str, Any] = {"mean": (0.5,), "std": (0.25,)}
    with pytest.raises(ValueError, match=f"^{field}: expected a number from"):
        Preprocessing(16, 0.875, **{**good, field: (float("nan"),)})


def test_parameters_are_counted_from_the_plan() -> None:
    for name, options in (
        ("attention56_cifar", {}),
        ("attentionnext56", {"in_chans": 1, "num_classes": 7, "strides": (2, 1, 2), "p": 0}),
        ("attention56_cifar_pool", {"tail_units": 0, "post_units": 2, "mask_depths": (0, 1, 3)}),
    ):
        with torch.device("meta"):
            model: Any = ran.create_model(name, **options)
        counted = attention_parameters(model.spec, model.in_chans, model.num_classes)
        assert counted == ran.count_parameters(model)
    plan: dict[str, Any] = {
        "block": "bottleneck",
        "layers": (1, 2, 1, 1),
        "channels": (16, 64, 32, 32),
        "cardinality": 4,
        "base_width": 16,
        "reduction": 8,
    }
    for block in ("bottleneck", "basic"):
        narrow = {"cardinality": 1, "base_width": 64} if block == "basic" else {}
        given = {**plan, "block": block, **narrow}
        counted = cbam_parameters(**given, in_chans=2, num_classes=5)
        built = ran.CbamResNet(**given, in_chans=2, num_classes=5)
        assert counted == ran.count_parameters(built)


def test_huge_plans_in_python_are_refused_too() -> None:
    for name, options in (
        ("attention56", {"modules": (300, 300, 300)}),
        ("attention56", {"width_multiplier": 60}),
        ("attention56", {"in_chans": 10**9}),
        ("cbam_resnet50", {"layers": (10**6,) * 4}),
        ("cbam_resnet50", {"channels": (10**6,) * 4}),
        ("cbam_resnet50", {"base_width": 10**9}),
        ("cbam_resnet50", {"num_classes": 10**9}),
    ):
        with pytest.raises(ValueError, match=r"^\w+: expected .*at most "):
            ran.create_model(name, **options)
    card = NetworkCard("attention56", ("a",), CARD.preprocessing, {"t": 10**7})
    with pytest.raises(UserError, match="t: expected an integer of at least 1 and at most"):
        card.build()
