from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ran.data import load_data
from ran.errors import UserError
from ran.pictures import masks
from ran.pictures.grid import save_grid
from ran.pictures.masks import draw_test_masks, mean_masks, plot_masks
from ran.pictures.plots import plot_curves
from ran.training.run import TrainingResult
from ran.weights.network_card import NetworkCard, load_network
from tests.tiny import random_image


def test_mean_masks_average_the_networks_masks_over_channels(trained: TrainingResult) -> None:
    network, card = load_network(trained.folder)
    images, _ = load_data("digits", 16).test.__getitems__(range(3))
    found = mean_masks(network, card.preprocessing, images)
    whole = network.attention_masks(card.preprocessing.normalize(images))  # type: ignore[operator]
    assert found.keys() == whole.keys()
    for name, mask in found.items():
        assert mask.shape == (3, 8, 8)
        torch.testing.assert_close(mask, whole[name].mean(1))


def test_masks_of_a_network_in_float64(trained: TrainingResult) -> None:
    network, card = load_network(trained.folder)
    images, _ = load_data("digits", 16).test.__getitems__(range(1))
    expected = mean_masks(network, card.preprocessing, images)
    found = mean_masks(network.double(), card.preprocessing, images)
    for name, mask in found.items():
        torch.testing.assert_close(mask, expected[name])


def test_drawn_masks_show_the_image_in_gray_and_the_masks_in_colour(tmp_path: Path) -> None:
    path = tmp_path / "masks.png"
    images = torch.full((2, 1, 8, 8), 128, dtype=torch.uint8)
    rising = torch.linspace(0, 1, 4).expand(2, 4, 4)
    save_grid(path, images, ["a", "b"], {"one": rising, "two": rising.flip(2)}, title="test")
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    red = (pixels[..., 0] - pixels[..., 2]) > 60
    blue = (pixels[..., 2] - pixels[..., 0]) > 60
    columns = np.arange(pixels.shape[1])
    middle = columns[(red | blue).any(0)].mean()
    left, right = columns < middle, columns >= middle
    assert (columns[red.any(0) & left].mean()) > (columns[blue.any(0) & left].mean())
    # the bars below the images run from blue to red in both columns: look at the images alone
    top = slice(0, pixels.shape[0] // 2)
    assert columns[red[top].any(0) & right].mean() < columns[blue[top].any(0) & right].mean()


def test_masks_of_image_files(trained: TrainingResult, tmp_path: Path) -> None:
    image = tmp_path / "photo.jpg"
    random_image((40, 30), 0).save(image)
    for suffix in ("png", "pdf"):
        output = tmp_path / f"masks.{suffix}"
        plot_masks(trained.folder, [image, image], output)
        assert output.stat().st_size > 5000


def test_test_masks_show_one_image_of_each_of_the_first_classes(
    trained: TrainingResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, card = load_network(trained.folder)
    drawn: dict[str, list[str]] = {}
    monkeypatch.setattr(
        masks, "save_grid", lambda path, images, captions, found, title: drawn.update(c=captions)
    )
    draw_test_masks(network, card, load_data("digits", 16), tmp_path / "masks.png")
    assert [caption.splitlines()[0] for caption in drawn["c"]] == [f"true {n}" for n in range(6)]
    assert all("predicted " in caption for caption in drawn["c"])


def test_a_network_without_attention_gets_no_picture(
    trained: TrainingResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, card = load_network(trained.folder)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    draw_test_masks(plain, card, load_data("digits", 16), tmp_path / "masks.png")
    monkeypatch.setattr(masks, "load_network", lambda path: (plain, card))
    with pytest.raises(UserError, match="expected a network with masks"):
        plot_masks(tmp_path, ["x.png"], tmp_path / "masks.png")
    assert list(tmp_path.iterdir()) == []
    assert isinstance(card, NetworkCard)


def test_bad_outputs_are_named_and_nothing_is_written(
    trained: TrainingResult, tmp_path: Path
) -> None:
    image = tmp_path / "image.png"
    random_image((8, 8), 0).save(image)
    before = image.read_bytes()
    for output, reason in (
        (image, "it exists"),
        (tmp_path / "no" / "masks.png", "expected a folder to write in"),
        (tmp_path / "masks.docx", "expected a name that ends in one of"),
        (tmp_path / "masks", "expected a name that ends in one of"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            plot_masks(trained.folder, [image], output)
        assert str(output) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["image.png"]
    assert image.read_bytes() == before


def test_curves_are_drawn_for_a_single_epoch(trained: TrainingResult, tmp_path: Path) -> None:
    plot_curves(tmp_path / "one.png", trained.rows[:1], title="one")
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.size == (1000, 400)
