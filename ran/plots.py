"""Pictures of trainings and masks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from .errors import UserError
from .files import replacing

TRAIN_COLOR, TEST_COLOR = "#1f6fb4", "#d1495b"
#: From a low mask value to a high one.
MASK_COLORS = "coolwarm"
#: Brightness of a mask's colour over black; over white it is 1.
DARKEST = 0.45
#: Side of one image in masks.png, in inches.
CELL = 1.25
#: Height of a colour bar, in sides of an image.
BAR = 0.09
#: Between the images, as shares of their side.
GAPS = {"wspace": 0.02, "hspace": 0.02}


def plot_curves(path: Path, rows: Sequence[dict[str, float]], *, title: str) -> None:
    """Draws loss and accuracy by epoch from the rows of metrics.csv."""
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(10, 4), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=13)
    losses, accuracy = figure.subplots(1, 2)

    losses.plot(epochs, [row["train_loss"] for row in rows], color=TRAIN_COLOR, label="train")
    losses.plot(epochs, [row["test_loss"] for row in rows], color=TEST_COLOR, label="test")
    losses.set(title="Loss", xlabel="epoch", ylabel="cross-entropy", yscale="log")
    losses.legend(frameon=False)

    values = [row["test_accuracy"] for row in rows]
    best = int(np.argmax(values))
    accuracy.plot(epochs, values, color=TEST_COLOR)
    accuracy.plot(epochs[best], values[best], "o", color=TEST_COLOR)
    accuracy.set(title=f"Test accuracy: {values[best]:.2%} best, {values[-1]:.2%} last")
    accuracy.set(xlabel="epoch", ylabel="images classified right")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))

    for axes in (losses, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def plot_masks(
    path: Path, images: Tensor, captions: Sequence[str], masks: dict[str, Tensor], *, title: str
) -> None:
    """Draws a row an image and a column a module: the image, then each mask laid over it.

    Every column has a colour scale of its own, from the least to the greatest value in it.

    Args:
        path: picture to write; its suffix says the format.
        images: (N, C, H, W) uint8, C 1 or 3.
        captions: of each image.
        masks: (N, h, w) by module name.
        title: above it all.

    Raises:
        UserError: matplotlib does not know the format or cannot write there.
    """
    pictures = images.permute(0, 2, 3, 1).numpy()
    if pictures.shape[-1] == 1:
        pictures = pictures.repeat(3, axis=-1)
    count, columns = len(pictures), 1 + len(masks)
    figure = Figure(
        figsize=(1.3 + 1.08 * CELL * columns, 1.3 + 1.03 * CELL * count),
        dpi=100,
        layout="constrained",
    )
    figure.suptitle(f"Attention masks of {title}", fontsize=12)
    figure.supxlabel("brightness: the image; colour: the mask's mean over channels", fontsize=9)
    grid = figure.subplots(
        count + 1, columns, squeeze=False, height_ratios=[*[1] * count, BAR], gridspec_kw=GAPS
    )
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)

    for axes, picture, caption in zip(grid[:, 0], pictures, captions, strict=False):
        axes.imshow(picture)
        axes.set_ylabel(caption, rotation=0, ha="right", va="center", fontsize=9)
    grid[0, 0].set_title("image", fontsize=9)
    for column, (name, mask) in enumerate(masks.items(), start=1):
        *cells, bar = grid[:, column]
        _draw_column(cells, bar, pictures, name, mask.numpy())
    _save(figure, path)


def _draw_column(
    cells: list[Axes], bar: Axes, pictures: np.ndarray, name: str, masks: np.ndarray
) -> None:
    height, width = pictures.shape[1:3]
    low, high = masks.min(), masks.max()
    colors = colormaps[MASK_COLORS]
    scale = ScalarMappable(Normalize(low, high), colors)
    cells[0].set_title(f"{name}\n{masks.shape[1]}×{masks.shape[2]}", fontsize=9)
    for axes, picture, mask in zip(cells, pictures, masks, strict=True):
        # hue says the mask, brightness the image: blending the two would leave neither readable
        tint = scale.to_rgba(_enlarged(mask, height, width))[..., :3]
        brightness = picture.mean(-1, keepdims=True) / 255
        axes.imshow(tint * (DARKEST + (1 - DARKEST) * brightness))
    bar.imshow(colors(np.linspace(0, 1, 256))[None], aspect="auto")
    bar.set_xticks([0, 255], labels=[f"{low:.3f}", f"{high:.3f}"], fontsize=8)
    bar.tick_params(length=0)
    lowest, highest = bar.get_xticklabels()
    lowest.set_horizontalalignment("left")
    highest.set_horizontalalignment("right")


def _enlarged(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    return tvf.resize(torch.from_numpy(mask)[None], [height, width], antialias=True)[0].numpy()


def _save(figure: Figure, path: Path) -> None:
    try:
        with replacing(path) as partial:
            figure.savefig(partial)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot write the picture: {error}") from None
