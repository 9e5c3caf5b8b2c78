"""Pictures of trainings and evaluations."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..errors import UserError
from ..files import replacing, require_writable
from .fonts import drawing, plain

TRAIN_COLOR, TEST_COLOR = "#1f6fb4", "#d1495b"
#: Of a confusion matrix: classes up to which each cell has its count and each line its name.
MOST_COUNTED, MOST_NAMED = 20, 100
#: Confusions listed beside the matrix.
MOST_CONFUSED = 12


def plot_curves(path: Path, rows: Sequence[dict[str, float]], *, title: str) -> None:
    """Draws loss and accuracy by epoch from the rows of metrics.csv."""
    save_figure(curves_figure(rows, title=title), path)


def curves_figure(rows: Sequence[dict[str, float]], *, title: str) -> Figure:
    """Loss and accuracy by epoch from the rows of metrics.csv."""
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(10, 4), dpi=100, layout="constrained")
    figure.suptitle(plain(title), fontsize=13)
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
    return figure


def plot_confusion(
    path: Path,
    matrix: np.ndarray,
    names: Sequence[str],
    confusions: Sequence[tuple[str, str, int]],
    *,
    title: str,
) -> None:
    """Draws a confusion matrix, and beside it the most frequent confusions.

    Colours are shares of the true class's images, on a root scale that shows the rare ones. Cells
    have their counts with up to 20 classes, lines their names with up to 100.

    Args:
        path: picture to write; its suffix says the format.
        matrix: (K, K) counts, the true class by row and the predicted one by column.
        names: of the K classes.
        confusions: true class, predicted class and count, the most frequent first.
        title: above it all.

    Raises:
        UserError: matplotlib does not know the format or cannot write there.
    """
    count = len(names)
    side = min(9.0, max(4.6, 1.6 + 0.42 * count if count <= MOST_COUNTED else 9.0))
    figure = Figure(figsize=(side + 4.4, side + 0.5), dpi=100, layout="constrained")
    figure.suptitle(plain(title), fontsize=12)
    left, right = figure.subplots(1, 2, width_ratios=(side, 3.6))

    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    left.imshow(np.sqrt(shares), "Blues", vmin=0, vmax=1, interpolation="nearest")
    left.set(xlabel="predicted (the darker, the more of the true class)", ylabel="true class")
    if count <= MOST_NAMED:
        labels = [plain(name) for name in names]
        size = 9 if count <= MOST_COUNTED else max(4.5, 9 - count / 20)
        left.set_xticks(range(count), labels=labels, rotation=90, fontsize=size)
        left.set_yticks(range(count), labels=labels, fontsize=size)
        if max(map(len, names)) <= 3 and count <= MOST_COUNTED:
            left.tick_params(axis="x", rotation=0)
    else:
        left.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        left.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    left.tick_params(length=0)
    if count <= MOST_COUNTED:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            color = "white" if shares[row, column] > 0.35 else "black"
            text = f"{matrix[row, column]}"
            left.text(column, row, text, color=color, fontsize=8, ha="center", va="center")
    _draw_confusions(right, confusions[:MOST_CONFUSED])
    save_figure(figure, path)


def _draw_confusions(axes: Axes, confusions: Sequence[tuple[str, str, int]]) -> None:
    axes.set_title("most frequent confusions", fontsize=10)
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=9)
    if not confusions:
        axes.set_yticks([])
        axes.text(0.5, 0.9, "none", ha="center", transform=axes.transAxes, color="0.35")
        return
    labels = [f"{_short(true)} → {_short(predicted)}" for true, predicted, _ in confusions]
    counts = [number for _, _, number in confusions]
    bars = axes.barh(range(len(counts)), counts, color=TEST_COLOR, height=0.6)
    axes.bar_label(bars, padding=3, fontsize=8.5)
    axes.set_yticks(range(len(counts)), labels=labels)
    axes.set(ylim=(MOST_CONFUSED - 0.5, -0.5), xlim=(0, 1.15 * max(counts)))


def _short(name: str) -> str:
    return plain(name if len(name) <= 16 else f"{name[:15]}…")


def require_picture(path: Path, *, overwrite: bool) -> None:
    """Raises UserError unless ``path`` may be written and its suffix is of a format known here."""
    require_writable(path, overwrite=overwrite)
    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in known:
        suffixes = ", ".join(f".{name}" for name in sorted(known))
        raise UserError(f"{path}: expected a name that ends in one of {suffixes}")


def save_figure(figure: Figure, path: Path) -> None:
    """Writes ``figure`` in one step, in the format that the suffix of ``path`` says.

    Raises:
        UserError: matplotlib does not know the format or cannot write there.
    """
    try:
        with replacing(path, "the picture") as partial, drawing(figure):
            figure.savefig(partial)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot write the picture: {error}") from None
