"""Masks laid over images, and a grid of them for several images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from .fonts import plain
from .plots import save_figure

#: From a low mask value to a high one.
MASK_COLORS = "coolwarm"
#: Brightness of a mask's colour over black; over white it is 1.
DARKEST = 0.45
#: What differs by less than this is one value.
FLAT = 1e-5
#: Least difference between a scale's ends, a tenth of what a mask can say. On a scale of its own
#: values, a mask that is 0.498 everywhere would show attention where there is none.
LEAST_SPAN = 0.1


def save_grid(
    path: Path, images: Tensor, captions: Sequence[str], masks: dict[str, Tensor], *, title: str
) -> None:
    """Draws a row for each image and a column for each module: the image, then the masks over it.

    Every column has a colour scale of its own, see ``color_limits``.

    Args:
        path: picture to write; its suffix says the format.
        images: (N, C, H, W) uint8, C 1 or 3.
        captions: of each image.
        masks: (N, h, w) by module name.
        title: above it all.

    Raises:
        UserError: matplotlib does not know the format or cannot write there.
    """
    pictures = rgb_pictures(images)
    count, columns = len(pictures), 1 + len(masks)
    cell, bar = 1.25, 0.09  # inches; height of a colour bar in sides of an image
    figure = Figure(
        figsize=(1.3 + 1.08 * cell * columns, 1.3 + 1.03 * cell * count),
        dpi=100,
        layout="constrained",
    )
    figure.suptitle(f"Attention masks of {title}", fontsize=12)
    figure.supxlabel(
        "brightness: the image; colour: the mask's\nmean over channels, each module's on a scale\n"
        f"of its own, no narrower than {LEAST_SPAN}",
        fontsize=9,
    )
    grid = figure.subplots(
        *(count + 1, columns),
        squeeze=False,
        height_ratios=[*[1] * count, bar],
        gridspec_kw={"wspace": 0.02, "hspace": 0.02},
    )
    for axes in grid.flat:
        bare(axes)

    for axes, picture, caption in zip(grid[:, 0], pictures, captions, strict=False):
        axes.imshow(picture)
        axes.set_ylabel(plain(caption), rotation=0, ha="right", va="center", fontsize=9)
    grid[0, 0].set_title("image", fontsize=9)
    for column, (name, mask) in enumerate(masks.items(), start=1):
        *cells, scale = grid[:, column]
        _draw_column(cells, scale, pictures, name, mask.numpy())
    save_figure(figure, path)


def rgb_pictures(images: Tensor) -> np.ndarray:
    """(N, C, H, W) uint8 with C 1 or 3 as (N, H, W, 3) uint8."""
    pictures = images.permute(0, 2, 3, 1).cpu().numpy()
    return pictures.repeat(3, axis=-1) if pictures.shape[-1] == 1 else pictures


def color_limits(low: float, high: float) -> tuple[float, float]:
    """The ends of the scale for values from ``low`` to ``high``: no closer than ``LEAST_SPAN``."""
    wider = max(0.0, LEAST_SPAN - (high - low)) / 2
    return low - wider, high + wider


def tinted(picture: np.ndarray, mask: np.ndarray, low: float, high: float) -> np.ndarray:
    """The mask's colour at the image's brightness: blending the two would leave neither readable.

    (H, W, 3) from 0 to 1; colours from ``low`` to ``high``.
    """
    height, width = picture.shape[:2]
    enlarged = tvf.resize(torch.from_numpy(mask)[None], [height, width], antialias=True)[0].numpy()
    scale = ScalarMappable(Normalize(low, high), colormaps[MASK_COLORS])
    brightness = picture.mean(-1, keepdims=True) / 255
    return scale.to_rgba(enlarged)[..., :3] * (DARKEST + (1 - DARKEST) * brightness)


def bare(axes: Axes) -> Axes:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def _draw_column(
    cells: list[Axes], bar: Axes, pictures: np.ndarray, name: str, masks: np.ndarray
) -> None:
    low, high = color_limits(float(masks.min()), float(masks.max()))
    cells[0].set_title(f"{name}\n{masks.shape[1]}×{masks.shape[2]}", fontsize=9)
    for axes, picture, mask in zip(cells, pictures, masks, strict=True):
        axes.imshow(tinted(picture, mask, low, high))
    bar.imshow(colormaps[MASK_COLORS](np.linspace(0, 1, 256))[None], aspect="auto")
    bar.set_xticks([0, 255], labels=[f"{low:.3f}", f"{high:.3f}"], fontsize=8)
    bar.tick_params(length=0)
    lowest, highest = bar.get_xticklabels()
    lowest.set_horizontalalignment("left")
    highest.set_horizontalalignment("right")
