from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ran.data import Preprocessing, augment, load_data, read_image
from ran.errors import UserError
from tests.tiny import make_folder, random_image


def test_digits_are_split_the_same_way_every_time_and_by_class() -> None:
    data, again = load_data("digits", 16), load_data("digits", 16)
    train, labels = data.train.__getitems__(range(len(data.train)))
    test, test_labels = data.test.__getitems__(range(len(data.test)))
    assert (train.shape, test.shape) == ((1437, 1, 16, 16), (360, 1, 16, 16))
    assert train.dtype == torch.uint8
    assert torch.equal(test, again.test.__getitems__(range(360))[0])
    assert set(test_labels.bincount().tolist()) <= {34, 35, 36, 37}
    whole = {tuple(image.flatten().tolist()) for image in train}
    assert not whole & {tuple(image.flatten().tolist()) for image in test}
    assert len(labels) + len(test_labels) == 1797


def test_batches_are_whole_and_shuffled_in_training_and_complete_in_tests() -> None:
    data = load_data("digits", 8)
    loader = data.train_loader(100)
    orders = [torch.cat([labels for _, labels in loader]) for _ in range(2)]
    assert [len(order) for order in orders] == [1400, 1400]
    assert not torch.equal(*orders)
    found = torch.cat([labels for _, labels in data.test_loader(100)])
    assert torch.equal(found, data.test.__getitems__(range(360))[1])


def test_normalised_training_images_have_mean_0_and_deviation_1() -> None:
    data = load_data("digits", 8)
    images = data.preprocessing.normalize(data.train.__getitems__(range(1437))[0])
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images.mean().item() == pytest.approx(0, abs=1e-3)
    assert images.std().item() == pytest.approx(1, abs=1e-3)


def test_shift_gives_crops_of_the_padded_image() -> None:
    images = torch.arange(1, 257, dtype=torch.uint8).view(1, 1, 16, 16).expand(200, 3, 16, 16)
    padded = torch.nn.functional.pad(images[0], (2, 2, 2, 2))
    crops = {
        tuple(padded[:, y : y + 16, x : x + 16].flatten().tolist())
        for y in range(5)
        for x in range(5)
    }
    shifted = augment.shift(images, part=8)
    assert shifted.shape == images.shape
    found = {tuple(image.flatten().tolist()) for image in shifted}
    assert found <= crops
    assert len(found) > 15  # of 25, in 200 draws


def test_flip_mirrors_some_images_and_leaves_the_others() -> None:
    images = torch.randint(256, (100, 3, 4, 5), dtype=torch.uint8)
    flipped = augment.flip(images)
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(flipped, images, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 25 < sum(mirrored) < 75


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (20, 20), (300, 8)])
def test_resize_crops_the_centre(size: tuple[int, int]) -> None:
    width, height = size
    images = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    images[:, :, height // 2 - 2 : height // 2 + 2, width // 2 - 2 : width // 2 + 2] = 200
    resized = Preprocessing(16, 0.8, (0.5,) * 3, (0.5,) * 3).resize(images)
    assert resized.shape == (2, 3, 16, 16)
    assert resized.dtype == torch.uint8
    rows, columns = torch.nonzero(resized[0, 0] > 100, as_tuple=True)
    assert rows.float().mean().item() == pytest.approx(7.5, abs=0.6)
    assert columns.float().mean().item() == pytest.approx(7.5, abs=0.6)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "tif", "webp", "ppm"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_common_formats_are_read(tmp_path: Path, suffix: str, mode: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.linear_gradient("L").resize((30, 20)).convert(mode).save(path)
    for channels in (1, 3):
        image = read_image(path, channels)
        assert image.shape == (channels, 20, 30)
        assert image.dtype == torch.uint8
        expected = torch.linspace(0, 255, 20)[None, :, None].expand(channels, 20, 30)
        assert (image - expected).abs().max() < 16


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK"])
def test_other_colour_modes_are_read(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.tif"
    random_image((6, 5), 0, mode).save(path)
    assert read_image(path, 3).shape == (3, 5, 6)
    assert read_image(path, 1).shape == (1, 5, 6)


def test_16_bit_values_keep_their_high_byte(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(path)
    assert read_image(path, 1).flatten().tolist() == [0, 1, 128, 255]


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera's orientation tag: turn a quarter clockwise
    random_image((6, 4), 0).save(path, exif=exif)
    assert read_image(path, 3).shape == (3, 6, 4)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
@pytest.mark.parametrize("test_part", ["test", "val"])
def test_a_folder_of_images(tmp_path: Path, mode: str, channels: int, test_part: str) -> None:
    root = make_folder(tmp_path / "set", parts=("train", test_part), mode=mode, suffix="JPG")
    (root / "train" / "cat" / ".hidden.jpg").write_bytes(b"no image")
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    data = load_data(f"folder:{root}", 16)
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (8, 8)
    assert data.preprocessing.channels == channels
    images, labels = data.test.__getitems__([0, 7])
    assert images.shape == (2, channels, 16, 16)
    assert labels.tolist() == [0, 1]
    expected = read_image(root / test_part / "dog" / "3.JPG", channels)
    assert torch.equal(images[1], data.preprocessing.resize(expected))


def test_one_colour_image_makes_the_set_colour(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", mode="L")
    random_image((20, 18), 0).save(root / "test" / "dog" / "0.png")
    assert load_data(f"folder:{root}", 16).preprocessing.channels == 3


def refused(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_data(f"folder:{root}", 16)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_folders_and_classes_are_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "no") == (
        f"{tmp_path / 'no'}: expected a folder of images, found no folder there"
    )
    root = make_folder(tmp_path / "set", parts=("train",))
    assert "expected test/ or val/" in refused(root)
    make_folder(root, parts=("test",), classes=("cat", "eel"))
    assert refused(root) == f"{root / 'test'}: expected the same classes as beside it, has no 'dog'"
    one = make_folder(tmp_path / "one", classes=("cat",))
    assert refused(one) == f"{one / 'train'}: expected folders of 2 or more classes, has 1"


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set")
    for image in (root / "test" / "dog").iterdir():
        image.unlink()
    assert refused(root) == f"{root / 'test' / 'dog'}: expected images of class 'dog', has none"


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("keep", [0, 12, 0.6])
def test_a_damaged_image_is_named(tmp_path: Path, suffix: str, keep: float) -> None:
    root = make_folder(tmp_path / "set", suffix=suffix, size=(200, 200), count=2)
    damaged = root / "train" / "dog" / f"1.{suffix}"
    content = damaged.read_bytes()
    damaged.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    assert refused(root).startswith(f"{damaged}: expected a readable image: ")
