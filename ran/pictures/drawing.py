"""Pictures of what each attention module does to an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..errors import UserError
from ..files import replacing
from ..text import plural
from .fonts import drawing, legible
from .grid import FLAT, LEAST_SPAN, MASK_COLORS, bare, color_limits, tinted
from .plots import save_figure
from .views import ChannelView, ModuleView

#: From a negative feature over zero to a positive one: what a mask weakens turns pale.
FEATURE_COLORS = "PuOr_r"
#: Share of the features' magnitudes above which colours do not differ any more: single values
#: far outside would leave all others pale.
QUANTILE = 0.99
FRAME_COLOR = "0.8"

# A page in pixels at 100 dots an inch, so that one pixel of it is one of the screen.
DPI = 100
MARGIN, TITLE, FOOT = 16, 46, 40
PHOTO, LABEL, CELL = 190, 132, 116
GAP, GROUP_GAP, BLOCK_GAP = 4, 16, 30
HEADING, ABOVE = 40, 18
#: Cells beside the mask over the image, and how many of them belong together: features before,
#: mask and features after it; for CBAM the channel gates, and features before and after the gates.
CHANNEL_CELLS = 6
SOFT_GROUP, CBAM_GROUP = 3, 2
WIDTH = 2 * MARGIN + PHOTO + LABEL + (1 + CHANNEL_CELLS) * (CELL + GAP) + 3 * GROUP_GAP
#: What image viewers and matplotlib still handle.
TALLEST = 30_000
#: How long a frame of an animation stays, and the last one.
FRAME_MS, LAST_FRAME_MS = 900, 2500

LEGEND = (
    "Masks: blue is low and red is high, from the least to the greatest value as printed above "
    f"(where they are closer than {LEAST_SPAN}, on a scale of that);\n"
    "over an image, brightness is the image's. "
    "Features: orange is positive, violet negative, white zero, on one scale before and after."
)

#: Least and greatest value of a picture's colours, by image, module, and what is shown of it.
Scales = dict[tuple[int, str, str], tuple[float, float]]
_FEATURES = "features"


@dataclass(frozen=True)
class ImageView:
    """An image (H, W, 3) uint8, what is written below it, and what each module did to it."""

    picture: np.ndarray
    caption: str
    modules: tuple[ModuleView, ...]


def save_page(path: Path, images: Sequence[ImageView], *, title: str) -> None:
    """Draws a block for each image, with a row for each attention module.

    A row shows the module's mask over the image, and single channels: features before the mask,
    the mask, features after it, as Figure 1 of Wang et al. (CVPR 2017) does. For CBAM it shows
    the spatial gate over the image, the channel gates, and the features of the channels with the
    highest gates before and after both. The features of a channel have one scale before and after.

    Args:
        path: picture to write; its suffix says the format.
        images: what to draw.
        title: above it all.

    Raises:
        UserError: matplotlib does not know the format, cannot write there, or the page would be
            too tall.
    """
    save_figure(_page(images, title, scales_of([images])), path)


def save_animation(
    path: Path, frames: Sequence[Sequence[ImageView]], titles: Sequence[str]
) -> None:
    """Writes an animated GIF of a page for each of ``frames``.

    A mask's colours mean the same in all frames. Features have a scale in each frame: they grow by
    orders of magnitude in a training.

    Raises:
        UserError: the file cannot be written, or the page would be too tall.
    """
    shared = {key: value for key, value in scales_of(frames).items() if _FEATURES not in key[2]}
    pages = [
        _pixels(_page(images, title, {**scales_of([images]), **shared}))
        for images, title in zip(frames, titles, strict=True)
    ]
    durations = [FRAME_MS] * (len(pages) - 1) + [LAST_FRAME_MS]
    with replacing(path, "the animation") as partial:
        pages[0].save(
            partial,
            format="GIF",
            save_all=True,
            append_images=pages[1:],
            duration=durations,
            loop=0,
        )


def scales_of(frames: Sequence[Sequence[ImageView]]) -> Scales:
    """The least and greatest value to colour, over all frames."""
    found: Scales = {}

    def include(index: int, module: ModuleView, what: str, low: float, high: float) -> None:
        key = index, module.name, what
        before = found.get(key, (low, high))
        found[key] = (min(before[0], low), max(before[1], high))

    for frame in frames:
        for index, image in enumerate(frame):
            for module in image.modules:
                include(index, module, "mask", *_limits(module.mask))
                if module.gates is not None:
                    include(index, module, "gates", *_limits(module.gates))
                for channel in module.channels:
                    if channel.mask is not None:
                        include(index, module, f"mask {channel.number}", *_limits(channel.mask))
                    both = np.concatenate([channel.before.ravel(), channel.after.ravel()])
                    sizes = np.abs(both)
                    # the greatest where few differ from zero, as after a ReLU
                    high = float(np.quantile(sizes, QUANTILE)) or float(sizes.max())
                    include(index, module, f"{_FEATURES} {channel.number}", -high, high)
    return found


def _limits(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


class _Canvas:
    """A figure whose parts are placed in pixels from its top left corner."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        left, bottom = x / self.width, 1 - (y + height) / self.height
        return self.figure.add_axes((left, bottom, width / self.width, height / self.height))

    def text(self, x: float, y: float, text: str, size: float = 9, **style: Any) -> None:
        self.figure.text(
            x / self.width,
            1 - y / self.height,
            legible(text),
            fontsize=size,
            parse_math=False,
            **style,
        )


def _page(images: Sequence[ImageView], title: str, scales: Scales) -> Figure:
    row = ABOVE + CELL + GAP
    heights = [max(len(image.modules) * row, ABOVE + PHOTO + 80) for image in images]
    height = TITLE + sum(HEADING + h + BLOCK_GAP for h in heights) + FOOT
    if height > TALLEST:
        modules = max(len(image.modules) for image in images)
        raise UserError(
            f"images: expected fewer, or fewer modules (--modules): {plural(len(images), 'image')} "
            f"of {plural(modules, 'module')} make {height} pixels of height, at most {TALLEST}"
        )
    canvas = _Canvas(WIDTH, height)
    canvas.text(MARGIN, MARGIN, title, 13, va="top", weight="bold")
    y = float(TITLE)
    for index, (image, block) in enumerate(zip(images, heights, strict=True)):
        _draw_image(canvas, y + HEADING, image)
        _draw_headings(canvas, y, image)
        for number, module in enumerate(image.modules):
            _draw_module(canvas, y + HEADING + number * row, image, module, index, scales)
        y += HEADING + block + BLOCK_GAP
    canvas.text(MARGIN, height - MARGIN, LEGEND, 8.5, color="0.35")
    return canvas.figure


def _columns(group: int) -> tuple[float, float, list[float]]:
    """Left edges: of the labels' right end, of the mask over the image, of the other cells.

    The other cells stand in groups of ``group``.
    """
    mask = MARGIN + PHOTO + LABEL
    first = mask + CELL + GAP + GROUP_GAP
    cells = [float(first + i * (CELL + GAP) + i // group * GROUP_GAP) for i in range(CHANNEL_CELLS)]
    return mask - 10, mask, cells


def _draw_image(canvas: _Canvas, y: float, image: ImageView) -> None:
    height, width = image.picture.shape[:2]
    side = PHOTO - 14
    axes = bare(canvas.axes(MARGIN, y + ABOVE, side, side * height / width))
    _show(axes, image.picture)
    canvas.text(MARGIN, y + ABOVE + side * height / width + 8, image.caption, 9.5, va="top")


def _draw_headings(canvas: _Canvas, y: float, image: ImageView) -> None:
    is_cbam = image.modules[0].gates is not None
    _, mask, cells = _columns(CBAM_GROUP if is_cbam else SOFT_GROUP)
    style = {"va": "bottom", "ha": "center", "color": "0.25"}
    at = y + HEADING - 4
    what = "spatial gate\nover the image" if is_cbam else "mask over the image\n(mean of channels)"
    canvas.text(mask + CELL / 2, at, what, 9, **style)
    if is_cbam:
        canvas.text((cells[0] + cells[1] + CELL) / 2, at, "channel gates", 9, **style)
        names, cells = ["features before", "after both gates"], cells[CBAM_GROUP:]
    else:
        names = ["features before", "mask", "features after"]
    for number, place in enumerate(cells):
        canvas.text(place + CELL / 2, at, names[number % len(names)], 9, **style)


def _draw_module(
    canvas: _Canvas, y: float, image: ImageView, module: ModuleView, index: int, scales: Scales
) -> None:
    is_cbam = module.gates is not None
    label, mask, cells = _columns(CBAM_GROUP if is_cbam else SOFT_GROUP)
    top = y + ABOVE
    size = "×".join(map(str, module.mask.shape))
    canvas.text(label, top + CELL / 2 - 10, _broken(module.name), 9.5, ha="right", va="center")
    canvas.text(
        *(label, top + CELL / 2 + 20, f"{size}, {plural(module.width, 'channel')}", 8.5),
        ha="right",
        va="center",
        color="0.35",
    )
    low, high = scales[index, module.name, "mask"]
    overlay = tinted(image.picture, module.mask, *color_limits(low, high))
    _show(bare(canvas.axes(mask, top, CELL, CELL)), overlay)
    _above(canvas, mask, top, _range(low, high))
    if module.gates is not None:
        _draw_gates(canvas, cells[0], top, module, scales[index, module.name, "gates"])
        cells = cells[CBAM_GROUP:]
    width = CBAM_GROUP if is_cbam else SOFT_GROUP
    for number, channel in enumerate(module.channels):
        features = scales[index, module.name, f"{_FEATURES} {channel.number}"]
        mask_scale = scales.get((index, module.name, f"mask {channel.number}"))
        _draw_channel(canvas, cells[number * width :], top, channel, features, mask_scale)


def _draw_channel(
    canvas: _Canvas,
    cells: Sequence[float],
    top: float,
    channel: ChannelView,
    scale: tuple[float, float],
    mask_scale: tuple[float, float] | None,
) -> None:
    def features(x: float, values: np.ndarray) -> None:
        axes = bare(canvas.axes(x, top, CELL, CELL))
        # features that are zero everywhere are white like any other zero
        low, high = scale if scale[1] else (-1, 1)
        axes.imshow(values, FEATURE_COLORS, vmin=low, vmax=high, aspect="auto")
        axes.spines[:].set(visible=True, color=FRAME_COLOR, linewidth=0.8)

    # the scale's ends: features have no range of their own, and noise of 1e-9 looks like any other
    name = f"channel {channel.number}, ±{scale[1]:.2g}"
    features(cells[0], channel.before)
    if channel.mask is not None and mask_scale is not None:
        _above(canvas, cells[0], top, name)
        axes = bare(canvas.axes(cells[1], top, CELL, CELL))
        low, high = color_limits(*mask_scale)
        axes.imshow(channel.mask, MASK_COLORS, vmin=low, vmax=high, aspect="auto")
        _above(canvas, cells[1], top, _range(*mask_scale))
        features(cells[2], channel.after)
    else:
        _above(canvas, cells[0], top, name)
        _above(canvas, cells[1], top, f"channel gate {channel.gate:.3f}")
        features(cells[1], channel.after)


def _draw_gates(
    canvas: _Canvas, x: float, top: float, module: ModuleView, scale: tuple[float, float]
) -> None:
    gates = module.gates
    assert gates is not None
    # room for the numbers of both axes inside the two cells
    axes = canvas.axes(x + 30, top + 2, 2 * CELL + GAP - 34, CELL - 18)
    numbers = np.arange(len(gates))
    low, high = color_limits(*scale)
    axes.fill_between(numbers, gates, low, step="mid", color="0.72", linewidth=0)
    shown = [channel.number for channel in module.channels]
    axes.plot(shown, gates[shown], "v", color="#b40426", markersize=5, clip_on=False)
    axes.set(xlim=(-0.5, len(gates) - 0.5), ylim=(low, high))
    axes.set_xticks([0, len(gates) - 1])
    axes.set_yticks([low, high], labels=[f"{low:.2f}", f"{high:.2f}"])
    axes.tick_params(labelsize=7.5, length=2, pad=2)
    axes.spines[["top", "right"]].set_visible(False)


def _above(canvas: _Canvas, x: float, top: float, text: str) -> None:
    canvas.text(x + CELL / 2, top - 3, text, 8, ha="center", va="bottom", color="0.35")


def _range(low: float, high: float) -> str:
    if high - low < FLAT:
        return f"{low:.3f} everywhere"
    digits = 3 if high - low < 0.1 else 2
    return f"{low:.{digits}f} to {high:.{digits}f}"


def _broken(name: str) -> str:
    """A module's name on two lines where one would be wider than its column."""
    if len(name) <= 18:
        return name
    start, _, end = name.rpartition(".")
    return f"{start}.\n{end}"


def _show(axes: Axes, picture: np.ndarray) -> None:
    small = picture.shape[0] <= CELL
    axes.imshow(picture, interpolation="nearest" if small else "antialiased", aspect="auto")


def _pixels(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    with drawing(figure):
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
