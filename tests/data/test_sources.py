"""Where images come from: CIFAR's files, folders, timm's readers."""

import hashlib
import io
import pickle
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

import ran.data.readers
from ran.data import ImageData, Preprocessing, augment, load_data
from ran.data.cifar import CIFAR10, CIFAR100
from ran.data.dataset import InMemory
from ran.data.folder import Files
from ran.data.options import DataOptions
from ran.errors import UserError
from ran.evaluation.evaluation import evaluate
from ran.training.run import train
from ran.weights.network_card import NetworkCard, save_network
from tests.tiny import TINY_OPTIONS, make_folder, tiny_settings


def write_cifar(kind: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six images a file in the format of ``kind``, whose checksums are made to fit."""
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    labels = "labels" if kind is CIFAR10 else "fine_labels"
    names = [f"class{number}" for number in range(10)]
    generator = np.random.default_rng(0)

    def write(name: str, content: dict[str, Any]) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def write_list(files: list[list[str]]) -> list[list[str]]:
        images = generator.integers(0, 256, (6, 3072), dtype=np.uint8)
        return [write(name, {"data": images, labels: [0, 1, 2, 3, 4, 5]}) for name, _ in files]

    meta = write(kind.meta["filename"], {kind.meta["key"]: names})
    monkeypatch.setattr(kind, "train_list", write_list(kind.train_list))
    monkeypatch.setattr(kind, "test_list", write_list(kind.test_list))
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": meta[1]})
    return folder


@pytest.mark.parametrize(("name", "kind"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_cifar_is_read_whole_into_memory(
    name: str, kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_cifar(kind, tmp_path, monkeypatch)
    data = load_data(f"{name}:{tmp_path}", 32)
    assert isinstance(data.train, InMemory)
    assert (len(data.train), len(data.test)) == (6 * len(kind.train_list), 6)
    assert data.class_names[:2] == ("class0", "class1")
    images, labels = data.test.__getitems__([5, 0])
    stored = pickle.loads((folder / kind.test_list[0][0]).read_bytes())["data"]
    assert torch.equal(images[1], torch.from_numpy(stored[0].reshape(3, 32, 32)))
    assert labels.tolist() == [5, 0]
    again = load_data(f"{name}:{folder}", 16)  # the folder of batches itself, and another size
    assert again.test.__getitems__([0])[0].shape == (1, 3, 16, 16)


def test_cifars_files_are_named_where_missing_or_not_the_published_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_cifar(CIFAR10, tmp_path, monkeypatch)
    path = folder / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError) as caught:
        load_data(f"cifar10:{tmp_path}", 32)
    assert str(caught.value) == f"{path}: expected the published file, its checksum is another"
    path.unlink()
    with pytest.raises(UserError, match=r"data_batch_3: expected a file of CIFAR10, found none$"):
        load_data(f"cifar10:{tmp_path}", 32)
    with pytest.raises(UserError, match="--download fetches it"):
        load_data(f"cifar100:{tmp_path}", 32)


def test_a_download_without_a_network_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(CIFAR10, "download", fail)
    with pytest.raises(UserError, match="cannot download CIFAR10: no route to host"):
        load_data(f"cifar10:{tmp_path}", 32, options=DataOptions(download=True))


def test_small_folders_are_held_in_memory_as_their_files_say(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets")
    held = load_data(f"folder:{root}", 16)
    files = load_data(f"imagenet:{root}", 16)
    assert isinstance(held.train, InMemory)
    assert isinstance(files.train, Files)
    for ours, theirs in ((held.train, files.train), (held.test, files.test)):
        for one, other in zip(
            ours.__getitems__(range(8)), theirs.__getitems__(range(8)), strict=True
        ):
            assert torch.equal(one, other)


def test_too_large_folders_are_read_as_they_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(tmp_path / "pets")
    monkeypatch.setattr(ran.data.folder, "IN_MEMORY", 8 * 3 * 16 * 16 - 1)
    assert isinstance(load_data(f"folder:{root}", 16).train, Files)
    assert isinstance(load_data(f"folder:{root}", 15).train, InMemory)


@pytest.mark.parametrize("kind", ["folder", "imagenet"])
def test_the_test_part_alone_needs_no_other(kind: str, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", parts=["test"])
    with pytest.raises(UserError, match="expected train/"):
        load_data(f"{kind}:{root}", 16)
    data = load_data(f"{kind}:{root}", 16, test_only=True, crop_fraction=0.5)
    assert (len(data.train), len(data.test)) == (0, 8)
    assert data.class_names == ("cat", "dog")
    with Image.open(root / "test" / "cat" / "0.png") as image:
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    expected = Preprocessing(16, 0.5, (0.5,) * 3, (0.5,) * 3).resize(pixels)
    assert torch.equal(data.test.__getitems__([0])[0][0], expected)


def test_grayscale_folders_stay_so_in_memory(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", mode="L")
    assert load_data(f"folder:{root}", 16).train.__getitems__([0])[0].shape == (1, 1, 16, 16)
    assert load_data(f"imagenet:{root}", 16).train.__getitems__([0])[0].shape == (1, 3, 16, 16)


def test_cutout_blanks_one_square_of_the_given_size() -> None:
    images = torch.full((300, 2, 12, 10), 200, dtype=torch.uint8)
    blanked = augment.cutout(images, 4, (0.2, 0.4))
    assert images.eq(200).all()
    assert set(blanked[:, 0].unique().tolist()) == {51, 200}
    assert set(blanked[:, 1].unique().tolist()) == {102, 200}
    holes = blanked[:, 0] == 51
    assert torch.equal(holes, blanked[:, 1] == 102)
    heights, widths = holes.any(2).sum(1), holes.any(1).sum(1)
    assert torch.equal(heights * widths, holes.sum((1, 2)))  # rectangles
    assert (heights.min(), heights.max(), widths.max()) == (2, 4, 4)  # cut at the borders alone
    assert holes.any(0).all()  # everywhere
    data = load_data("digits", 8, "none", DataOptions(cutout=3))
    ones = torch.ones(5, 1, 8, 8, dtype=torch.uint8)
    assert (data.augmentation(ones) != 1).any()


class Reader:
    """Like timm's: the number of an image is its colour; ``damaged`` is no image."""

    def __init__(self, part: str, damaged: int = -1) -> None:
        self.class_to_idx = {"b": 1, "a": 0}
        self.part, self.damaged = part, damaged

    def __len__(self) -> int:
        return 6 if self.part == "train" else 3

    def __getitem__(self, index: int) -> tuple[Any, int]:
        file = io.BytesIO()
        if index != self.damaged:
            Image.new("RGB", (20, 16), (index, 0, 0)).save(file, "PNG")
        file.seek(0)
        return file, index % 2

    def filename(self, index: int) -> str:
        return f"shard/{index}.png"


class Listed:
    """Like timm's ImageDataset."""

    damaged = -1

    def __init__(self, part: str) -> None:
        self.reader = Reader(part, self.damaged)


class Damaged(Listed):
    damaged = 2


class Streamed(IterableDataset[Any]):
    """Like timm's IterableImageDataset."""

    def __init__(self, part: str) -> None:
        self.reader: Any = object()
        self.transform: Any = None
        self.files = Reader(part)

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        for file, label in (self.files[index] for index in range(len(self))):
            yield self.transform(Image.open(file)), label


def read(kind: Any, monkeypatch: pytest.MonkeyPatch, name: str, **options: Any) -> ImageData:
    def create(name: str, root: str | None, split: str, **_: Any) -> Any:
        opened.append((name, root, split))
        return kind(split)

    opened: list[tuple[str, str | None, str]] = []
    monkeypatch.setattr(ran.data.readers, "create_dataset", create)
    monkeypatch.setattr(ran.data.readers, "_installed", lambda _: True)
    data = load_data(name, 16, "none", DataOptions(workers=0, test_split="val", **options))
    reader, _, root = name.partition(":")
    assert opened == [(reader, root or None, "train"), (reader, root or None, "val")]
    return data


def test_timms_readers_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    data = read(Listed, monkeypatch, "hfds/someone/things")
    assert data.class_names == ("a", "b")
    assert (len(data.train), len(data.test)) == (6, 3)
    images, labels = data.train.__getitems__([4, 1])
    assert images.shape == (2, 3, 16, 16)
    assert images[:, 0, 0, 0].tolist() == [4, 1]
    assert labels.tolist() == [0, 1]


def test_unreadable_images_of_timms_readers_are_named_or_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = read(Damaged, monkeypatch, "hfds/things")
    with pytest.raises(UserError, match=r"^shard/2\.png: expected a readable image: "):
        data.train.__getitems__(range(6))
    data = read(Damaged, monkeypatch, "hfds/things", skip_unreadable=True)
    images, _ = data.train.__getitems__([1, 2])
    assert images[:, 0, 0, 0].tolist() == [1, 3]
    assert data.unreadable.count() == 1


def test_timms_readers_as_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    data = read(Streamed, monkeypatch, "wds/things:/somewhere", num_classes=3)
    assert data.class_names == ("0", "1", "2")
    loader = data.train_loader(4)
    assert len(loader) == 1
    assert [labels.tolist() for _, labels in loader] == [[0, 1, 0, 1]]
    assert [labels.tolist() for _, labels in data.test_loader(2)] == [[0, 1], [0]]
    with pytest.raises(UserError, match="num_classes=N says how many"):
        read(Streamed, monkeypatch, "wds/things")


def test_a_stream_is_evaluated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[str] = []

    def create(name: str, split: str, **_: Any) -> Streamed:
        opened.append(split)
        return Streamed(split)

    monkeypatch.setattr(ran.data.readers, "create_dataset", create)
    monkeypatch.setattr(ran.data.readers, "_installed", lambda _: True)
    card = NetworkCard(
        "attention56_cifar_pool",
        ("0", "1"),
        Preprocessing(16, 0.875, (0.5,) * 3, (0.5,) * 3),
        TINY_OPTIONS,
    )
    save_network(card.build(), card, tmp_path)
    found = evaluate(tmp_path, "wds/x", test_split="val", num_classes=2)
    assert (found.images, opened) == (3, ["val"])


def test_a_stream_trains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        ran.data.readers, "create_dataset", lambda name, split, **_: Streamed(split)
    )
    monkeypatch.setattr(ran.data.readers, "_installed", lambda _: True)
    settings = tiny_settings(
        tmp_path / "run", data="wds/x", num_classes=2, epochs=2, batch_size=2, workers=0
    )
    assert [row["step"] for row in train(settings).rows] == [3, 6]


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("wds/x:/data", "webdataset"),
        ("hfds/x", "datasets"),
        ("hfids/x", "datasets"),
        ("tfds/x", "tensorflow-datasets"),
    ],
)
@pytest.mark.parametrize("found", [None, ModuleSpec("a folder of that name", None)])
def test_a_readers_missing_package_is_named_and_how_to_get_it(
    name: str,
    package: str,
    found: ModuleSpec | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ran.data.readers, "find_spec", {package.replace("-", "_"): found}.get)
    with pytest.raises(UserError) as caught:
        load_data(name, 16)
    assert str(caught.value) == (
        f"{name.partition(':')[0]}: needs the package {package}, which is not installed: "
        f"pip install {package}"
    )
    assert capsys.readouterr().out == ""  # where --json is expected


def test_a_readers_errors_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ran.data.readers, "_installed", lambda _: True)
    for error, expected in (
        (ImportError("x"), "hfds/x: needs the package datasets, which is not installed"),
        (RuntimeError("no such\nset"), "hfds/x: cannot open its part 'train': no such set"),
    ):

        def fail(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(ran.data.readers, "create_dataset", fail)
        with pytest.raises(UserError) as caught:
            load_data("hfds/x", 16)
        assert str(caught.value).startswith(expected)
        assert "\n" not in str(caught.value)


def test_automatic_augmentation_and_scale_reach_timms_transforms(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", size=(64, 64))
    whole = DataOptions(scale=(1.0, 1.0), ratio=(1.0, 1.0), color_jitter=0.0, workers=0)
    data = load_data(f"folder:{root}", 16, "scale-flip", whole)
    draw = next(iter(data.train_loader(8)))[0]
    assert torch.equal(
        draw.sort(0).values, next(iter(data.train_loader(8, seed=9)))[0].sort(0).values
    )
    part = load_data(f"folder:{root}", 16, "scale-flip", DataOptions(auto_augment="rand-m9-n3"))
    assert "RandAugment" in str(part.train.transform)  # type: ignore[attr-defined]


def test_an_automatic_augmentation_that_timm_does_not_know_is_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets")
    with pytest.raises(UserError, match=r"auto_augment: expected .* got 'zzz'"):
        load_data(f"folder:{root}", 32, "scale-flip", DataOptions(auto_augment="zzz"))
