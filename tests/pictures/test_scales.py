"""The scales of pictures: where a mask says nothing, its picture shows nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ran.pictures.drawing import (
    ABOVE,
    CELL,
    HEADING,
    TITLE,
    ImageView,
    _columns,
    save_animation,
    save_page,
)
from ran.pictures.grid import LEAST_SPAN, color_limits, save_grid
from ran.pictures.views import ChannelView, ModuleView

#: What a network that has learnt nothing of attention gives: 0.498, and noise.
NOISE = (0.498 + 1e-3 * np.random.default_rng(0).random((8, 8))).astype(np.float32)
GRAY = np.full((32, 32, 3), 255, dtype=np.uint8)


def colours(picture: Image.Image) -> np.ndarray:
    """How far red and blue are apart in each pixel."""
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    return np.abs(pixels[..., 0] - pixels[..., 2])


def module(mask: np.ndarray, *, cbam: bool) -> ModuleView:
    nothing = np.zeros_like(mask)
    if cbam:
        gates = mask.flatten()
        return ModuleView("m", 64, mask, gates, (ChannelView(0, 0.5, nothing, None, nothing),))
    return ModuleView("m", 64, mask, None, (ChannelView(0, None, nothing, mask, nothing),))


@pytest.mark.parametrize("cbam", [False, True])
def test_a_mask_of_noise_is_drawn_without_contrast(cbam: bool, tmp_path: Path) -> None:
    """Pages, animations; the mask over the image, and a channel's mask."""
    strong = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    found = {}
    for name, mask in {"noise": NOISE, "strong": strong}.items():
        view = ImageView(GRAY, "cat", (module(mask, cbam=cbam),))
        save_page(tmp_path / "x.png", [view], title="t")
        save_animation(tmp_path / "x.gif", [[view], [view]], ["a", "b"])
        found[name] = [colours(Image.open(tmp_path / f"x.{kind}")) for kind in ("png", "gif")]
    marker = (found["noise"][0] > 100).sum()  # CBAM's of the gates, and nothing else
    assert marker < (400 if cbam else 1)
    for noise, drawn in zip(found["noise"], found["strong"], strict=True):
        assert (drawn > 100).sum() > 2000
        assert np.quantile(noise, 0.99) < 40


def test_features_that_are_zero_are_white_and_one_alone_is_seen(tmp_path: Path) -> None:
    zero, one = np.zeros((2, 40, 40), dtype=np.float32)
    one[20, 20] = 1e-3
    channels = tuple(ChannelView(n, None, x, NOISE, x) for n, x in enumerate((zero, one)))
    view = ImageView(GRAY, "cat", (ModuleView("m", 2, NOISE, None, channels),))
    save_page(tmp_path / "x.png", [view], title="t")
    pixels = np.asarray(Image.open(tmp_path / "x.png").convert("RGB")).astype(int)
    top, inside = TITLE + HEADING + ABOVE, slice(6, CELL - 6)
    dead, alive = (
        pixels[top:][inside, int(x) :][:, inside].min(-1) for x in np.take(_columns(3)[2], (0, 3))
    )
    assert dead.min() > 240
    assert 1 <= (alive < 100).sum() < 40  # a pixel of the picture's features, and none around it


def test_a_grids_mask_of_noise_is_drawn_without_contrast(tmp_path: Path) -> None:
    images = torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)
    masks = torch.from_numpy(np.stack([NOISE, NOISE]))
    save_grid(tmp_path / "x.png", images, ["a", "b"], {"one": masks}, title="t")
    drawn = colours(Image.open(tmp_path / "x.png"))
    bar = drawn.shape[0] * 3 // 4  # which has all colours, and its ends' values
    assert drawn[:bar].max() < 60
    assert drawn[bar:].max() > 100


def test_scales_are_no_narrower_than_a_tenth_and_those_of_the_values_beyond() -> None:
    assert color_limits(0.498, 0.498) == pytest.approx((0.448, 0.548))
    assert color_limits(0.48, 0.5) == pytest.approx((0.44, 0.54))
    assert color_limits(0.2, 0.9) == (0.2, 0.9)
    assert color_limits(-0.3, LEAST_SPAN - 0.3) == pytest.approx((-0.3, LEAST_SPAN - 0.3))
