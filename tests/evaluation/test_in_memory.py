"""Networks and images in memory, predicted, evaluated and exported as those in files are."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import ran
import ran_kernels
from ran.data import ImageData, Preprocessing, load_data
from ran.data.digits import InMemory
from ran.data.given import as_image
from ran.errors import DefaultsWarning, UserError
from ran.evaluation.prediction import predict
from tests.tiny import TINY_OPTIONS, random_image

NAMES = tuple("abcdefghij")
IMAGES = Preprocessing(16, 0.875, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model: Any = ran.create_model("attention56_cifar_pool", num_classes=10, **TINY_OPTIONS)
    ran.save_pretrained(model, tmp_path / "net", class_names=NAMES, preprocessing=IMAGES)
    return tmp_path / "net"


def few(count: int = 30) -> ImageData:
    data = load_data("digits", 16)
    test = InMemory(*data.test.__getitems__(range(count)))
    return dataclasses.replace(data, test=test, class_names=NAMES)


def test_a_network_in_memory_gives_what_its_folder_does(folder: Path) -> None:
    model: Any = ran.from_pretrained(folder).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    image = random_image((20, 18), 1)
    assert ran.predict(model, image) == ran.predict(folder, image)
    ours, saved = (ran.evaluate(source, few()) for source in (model, folder))
    assert (ours.checkpoint, saved.checkpoint) == ("attention56_cifar_pool", str(folder))
    np.testing.assert_array_equal(ours.confusion, saved.confusion)
    out = folder.parent / "x.pt2"
    report = ran.export(model, out)
    assert report.error <= 1e-5
    program = torch.export.load(out).module()
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(program(x), ran.from_pretrained(folder)(x), rtol=1e-4, atol=1e-5)
    assert model.training
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_fused_network_of_timm_is_one_too() -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "resnet18", num_classes=3, channels=(8, 8, 16, 16), block_args={"attn_layer": "cbam"}
    ).eval()
    assert not ran_kernels.fuse(model).left
    image = random_image((230, 240), 1)
    with pytest.warns(DefaultsWarning, match="as is usual for resnet18: 224×224 pixels"):
        (found,) = ran.predict(model, image)
    config: Any = timm.data.resolve_model_data_config(model)
    usual = Preprocessing(224, config["crop_pct"], config["mean"], config["std"])
    x = usual.normalize(usual.resize(as_image(image, 3, "x"))[None])
    expected = model(x).softmax(1)[0].sort(descending=True)
    assert [name for name, _ in found.classes] == [str(i) for i in expected.indices.tolist()]
    assert [p for _, p in found.classes] == pytest.approx(expected.values.tolist(), abs=1e-5)


def test_an_image_is_the_same_in_a_file_and_however_it_is_held(folder: Path) -> None:
    image = random_image((20, 18), 1)
    path = folder.parent / "x.png"
    image.save(path)
    array = np.asarray(image)
    tensor = torch.tensor(array).permute(2, 0, 1)
    forms: list[Any] = [
        *(path, str(path), image, array, array[:, ::-1][:, ::-1], array / 255),
        *((array / 255).astype(">f4"), tensor, tensor / 255, (tensor / 255).half()),
        *(image.convert("RGBA"), np.asarray(image.convert("RGBA"))),
    ]
    (expected,) = ran.predict(folder, path)
    for form in forms:
        (found,) = ran.predict(folder, form)
        assert found.classes == expected.classes
        assert found.path == (path if isinstance(form, str | Path) else None)
    several = ran.predict(folder, [tensor, path, image, str(path)], batch_size=2)
    assert [found.path for found in several] == [None, path, None]  # a file counts once
    for found in several:
        assert dict(found.classes) == pytest.approx(dict(expected.classes), rel=1e-5)
    batched: list[Any] = [tensor.expand(3, -1, -1, -1), np.stack([array] * 3)]
    for batch in [*batched, [tensor, [array, image]]]:
        batches = ran.predict(folder, batch)
        assert len(batches) == 3
        for found in batches:
            assert dict(found.classes) == pytest.approx(dict(expected.classes), rel=1e-5)


def test_colours_become_what_the_network_takes() -> None:
    image = random_image((9, 7), 2)
    gray = as_image(image, 1, "x")
    assert gray.shape == (1, 7, 9)
    array = np.asarray(image.convert("L"))
    assert torch.equal(gray[0], torch.tensor(array))
    assert torch.equal(as_image(array, 3, "x"), gray.expand(3, -1, -1))
    near = as_image(np.asarray(image), 1, "x").int() - gray.int()
    assert near.abs().max() <= 1
    deep = Image.fromarray(np.full((7, 9), 0xF234, dtype=np.uint16))
    assert as_image(deep, 1, "x").unique().tolist() == [0xF2]
    four = torch.randint(256, (4, 7, 9), dtype=torch.uint8)
    assert torch.equal(as_image(four, 4, "x"), four)
    assert torch.equal(as_image(four, 3, "x"), four[:3])


def test_a_picture_stays_as_it_is_and_is_turned_upright() -> None:
    image = random_image((9, 7), 2)
    image.getexif()[0x0112] = 6  # a quarter turn
    assert as_image(image, 3, "x").shape == (3, 9, 7)
    assert image.size == (9, 7)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (
            torch.linspace(-2, 2, 243).view(3, 9, 9),
            r"images\[0\]: expected floats from 0 to 1, not yet normalised, got",
        ),
        (torch.full((3, 9, 9), float("nan")), "expected floats from 0 to 1.* got nan to nan"),
        (torch.zeros(3, 9, 9, dtype=torch.int64), "expected uint8, or floats .* got int64"),
        (np.zeros((9, 9, 3), dtype=np.int32), "expected uint8, or floats .* got int32"),
        (np.zeros((9, 9, 3), dtype=complex), "expected uint8, or floats .* got complex128"),
        (torch.zeros(9), r"expected shape \(C, H, W\) or \(H, W\), got \(9,\)"),
        (np.zeros((0, 9, 3)), r"expected shape \(H, W, C\) or \(H, W\), got \(0, 9, 3\)"),
        (torch.zeros(2, 9, 9), "expected 3 channels, as the network takes, got 2"),
        (3, "images: expected paths, PIL images, arrays or tensors, got a int"),
        ([], "images: expected at least one image"),
        (torch.zeros(0, 3, 9, 9), "images: expected at least one image"),
    ],
    ids=[
        *("normalised", "nan", "int64", "int32", "complex", "a-row", "no-rows", "two-channels"),
        *("a-number", "none", "an-empty-batch"),
    ],
)
def test_images_that_are_none_are_named(image: Any, said: str, folder: Path) -> None:
    with pytest.raises(UserError, match=said):
        predict(folder, image)


def test_unreadable_ones_are_left_out_when_asked(folder: Path) -> None:
    good = torch.zeros(3, 9, 9)
    found = predict(folder, [good, good - 1], skip_unreadable=True)
    assert [each.error is None for each in found] == [True, False]
    with pytest.raises(UserError, match="masks: expected None for images that are no files"):
        predict(folder, good, masks=folder / "masks")
