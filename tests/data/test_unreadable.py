"""Images that cannot be read: named, or left out and counted."""

from pathlib import Path

import pytest
import torch

from ran.data import load_data
from ran.data.options import DataOptions
from ran.errors import UserError
from ran.training.run import TrainingResult, train
from tests.tiny import make_folder, tiny_settings


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of images, and two of its files, one in each part, that are damaged."""
    root = make_folder(tmp_path / "pets")
    paths = root / "train" / "cat" / "2.png", root / "test" / "dog" / "0.png"
    for path in paths:
        path.write_bytes(path.read_bytes()[:70])
    return root, paths[0]


SKIP = DataOptions(skip_unreadable=True, workers=0)


def train_without_unreadable(output: Path, data: str, batch_size: int) -> TrainingResult:
    settings = {"epochs": 1, "batch_size": batch_size, "workers": 0, "skip_unreadable": True}
    return train(tiny_settings(output, data=data, **settings))


def test_unreadable_images_are_left_out_and_counted(damaged: tuple[Path, Path]) -> None:
    root, first = damaged
    with pytest.raises(UserError, match="expected a readable image"):
        load_data(f"folder:{root}", 16)
    data = load_data(f"folder:{root}", 16, options=SKIP)
    assert (len(data.train), len(data.test)) == (7, 7)
    assert (data.unreadable.count(), data.unreadable.count_tested()) == (2, 1)
    assert str(first) in data.unreadable.first


def test_unreadable_images_found_on_the_way_are_replaced_and_counted_once(
    damaged: tuple[Path, Path],
) -> None:
    root, _ = damaged
    data = load_data(f"imagenet:{root}", 16, options=SKIP)
    assert len(data.train) == 8
    for _ in range(2):
        images, labels = data.train.__getitems__(range(8))
    assert torch.equal(images[2], images[3])  # the next one in its place
    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert data.unreadable.count() == 1
    with pytest.raises(UserError, match=r"2\.png: expected a readable image"):
        load_data(f"imagenet:{root}", 16).train.__getitems__([2])


def test_workers_count_unreadable_images_too(damaged: tuple[Path, Path]) -> None:
    options = DataOptions(skip_unreadable=True, workers=1)
    data = load_data(f"imagenet:{damaged[0]}", 16, options=options)
    # in the test no other image is counted twice in place of the damaged one
    assert [labels.tolist() for _, labels in data.test_loader(3)] == [[0, 0, 0], [0, 1], [1, 1]]
    assert (data.unreadable.count(), data.unreadable.count_tested()) == (1, 1)
    # nor where a batch has nothing else
    images = [len(images) for images, _ in data.test_loader(1)]
    assert images == [1, 1, 1, 1, 0, 1, 1, 1]


def test_a_class_without_readable_images_is_named(damaged: tuple[Path, Path]) -> None:
    root, _ = damaged
    for path in (root / "test" / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="expected images of class 'dog', has none"):
        load_data(f"folder:{root}", 16, options=SKIP)


@pytest.mark.parametrize("kind", ["folder", "imagenet"])
def test_a_training_says_how_many_images_it_left_out(
    kind: str, damaged: tuple[Path, Path], tmp_path: Path
) -> None:
    result = train_without_unreadable(tmp_path / "run", f"{kind}:{damaged[0]}", batch_size=1)
    assert result.unreadable == 2
    # of the 7 test images that are left
    assert result.last["test_accuracy"] * 7 == pytest.approx(
        round(result.last["test_accuracy"] * 7), abs=1e-4
    )


def test_a_training_without_a_readable_test_image_says_so(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets")
    for path in (root / "test").glob("*/*"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"pets: expected test images that can be read, found none"):
        train_without_unreadable(tmp_path / "run", f"imagenet:{root}", batch_size=4)
