"""What the attention modules of a network look at, drawn: ``ran masks``."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data import ImageData, Preprocessing
from ..devices import choose_device
from ..errors import UserError
from ..files import require_path, require_writable
from ..text import printable
from ..weights.inference import class_probabilities, load_images, require_finite
from ..weights.network_card import NetworkCard, kept_checkpoints, load_network
from .drawing import ImageView, save_animation, save_page
from .grid import rgb_pictures, save_grid
from .plots import require_picture
from .views import attention_views, has_attention, shown_channels

#: Rows of the picture of test images.
TEST_IMAGES = 6
#: Classes named below an image.
NAMED_CLASSES = 3

Paths = Sequence[str | Path]


def plot_masks(
    checkpoint: str | Path | Paths,
    images: str | Path | Paths,
    output: str | Path,
    *,
    modules: str = "*",
    overwrite: bool = False,
    device: str = "auto",
) -> None:
    """Draws what each attention module of a network does to image files.

    For each image a block, and in it for each module a row: the mask over the image, and single
    channels before, in and after the mask, as Figure 1 of Wang et al. (CVPR 2017) shows; for CBAM
    the spatial gate over the image, the channel gates, and the channels with the highest gates
    (Woo et al., ECCV 2018).

    Args:
        checkpoint: as for ``ran.weights.network_card.load_network``. Several of one training, in
            order, make an animated GIF: the channels are those that tell most in the last one, and
            the colours mean the same in all frames. For a GIF, the folder of a training stands for
            all checkpoints that it kept of single epochs, if there are any.
        images: path of an image file, or several.
        output: picture to write; its suffix says the format, such as .png, .pdf or .svg, and .gif
            for several checkpoints.
        modules: pattern of the modules' names, such as ``stages.2.*`` or ``layer4.*``.
        overwrite: replace ``output`` if it is there.
        device: as for ``ran.devices.choose_device``.

    Raises:
        UserError: a file is missing or unreadable, the network has no such modules, the
            checkpoints are of different networks, or ``output`` exists or cannot be written.
            Nothing is written then.
    """
    output = require_path("output", output)
    checkpoints = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
    images = [images] if isinstance(images, str | Path) else images
    if not checkpoints or not images:
        what = "images" if checkpoints else "checkpoint"
        raise UserError(f"{what}: expected at least one path, got none")
    animated = output.suffix.lower() == ".gif"
    if len(checkpoints) > 1 and not animated:
        raise UserError(f"{output}: expected a .gif file for several checkpoints")
    if animated:  # which matplotlib does not write
        require_writable(output, overwrite=overwrite)
        parts: list[Paths] = [kept_checkpoints(Path(path)) or [path] for path in checkpoints]
        checkpoints = [path for part in parts for path in part]
    else:
        require_picture(output, overwrite=overwrite)
    chosen = choose_device(device)
    if len(checkpoints) == 1:
        network, card = _load(checkpoints[0], chosen)
        if animated:
            save_animation(output, [_views(network, card, images, modules)], [_title(card)])
        else:
            draw_network_masks(network, card, images, output, modules=modules)
        return
    _animate(checkpoints, images, output, modules, chosen)


def draw_network_masks(
    network: nn.Module, card: NetworkCard, images: Paths, output: Path, *, modules: str = "*"
) -> None:
    """Draws what ``plot_masks`` does for a network in evaluation mode, in place of ``output``."""
    save_page(output, _views(network, card, images, modules), title=_title(card))


def require_masks(network: nn.Module, card: NetworkCard, source: str | Path) -> None:
    """Raises UserError that names ``source`` unless ``network`` has attention modules to draw."""
    if not has_attention(network):
        raise UserError(f"{source}: expected a network with masks, {card.model} has none")


def mean_masks(
    network: nn.Module, preprocessing: Preprocessing, images: Tensor
) -> dict[str, Tensor]:
    """The masks of each attention module, averaged over channels.

    Args:
        network: one with ``attention_masks``.
        preprocessing: the network's.
        images: (N, C, image_size, image_size) uint8, on the network's device.

    Returns:
        (N, h, w) float32 on the CPU by module name, each at the module's own size.
    """
    x = _seen(network, preprocessing, images)
    masks = network.attention_masks(x)  # type: ignore[operator]
    return {name: mask.float().mean(1).cpu() for name, mask in masks.items()}


def draw_test_masks(network: nn.Module, card: NetworkCard, data: ImageData, output: Path) -> None:
    """Draws the first test image of each of the first classes, with label, prediction and masks.

    Does nothing for a network without attention modules.
    """
    if not has_attention(network):
        return
    images, labels = _first_of_each_class(data)
    probabilities, classes = class_probabilities(network, card.preprocessing, images).max(1)
    captions = [
        f"true {data.class_names[label]}\npredicted {card.class_names[number]} ({probability:.0%})"
        for label, number, probability in zip(
            labels, classes.tolist(), probabilities.tolist(), strict=True
        )
    ]
    masks = {
        name: mask
        for name, mask in mean_masks(network, card.preprocessing, images).items()
        if mask[0].numel() > 1  # CBAM's channel gates are no maps
    }
    save_grid(output, images.cpu(), captions, masks, title=card.model)


def _animate(
    checkpoints: Paths, images: Paths, output: Path, modules: str, device: torch.device
) -> None:
    # The last network chooses the channels, and all networks are read before any is drawn.
    network, last = _load(checkpoints[-1], device)
    final = _views(network, last, images, modules)
    channels = [shown_channels(list(image.modules)) for image in final]
    frames = []
    for path in checkpoints[:-1]:
        network, card = _load(path, device)
        if (card.model, card.options) != (last.model, last.options):
            raise UserError(f"{path}: expected the same network as in {checkpoints[-1]}")
        frames.append(_views(network, card, images, modules, channels))
    titles = [f"{_title(last)} · {printable(Path(path).name)}" for path in checkpoints]
    save_animation(output, [*frames, final], titles)


def _load(checkpoint: str | Path, device: torch.device) -> tuple[nn.Module, NetworkCard]:
    network, card = load_network(checkpoint)
    require_masks(network, card, checkpoint)
    return network.to(device), card


def _views(
    network: nn.Module,
    card: NetworkCard,
    paths: Paths,
    modules: str,
    channels: Sequence[dict[str, tuple[int, ...]]] | None = None,
) -> list[ImageView]:
    """One image at a time: features of all modules at once take much memory."""
    device = next(network.parameters()).device
    views = []
    for index, path in enumerate(paths):
        image = load_images([path], card).to(device)
        probabilities = class_probabilities(network, card.preprocessing, image)[0]
        require_finite(probabilities, card)  # NaN would be drawn as an empty picture
        top = probabilities.topk(min(NAMED_CLASSES, len(probabilities)))
        lines = [
            f"{card.class_names[number]}  {value:.1%}"
            for value, number in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]
        found = attention_views(
            network,
            _seen(network, card.preprocessing, image),
            pattern=modules,
            channels=None if channels is None else channels[index],
        )
        caption = "\n".join([_clipped(printable(Path(path).name)), *lines])
        views.append(ImageView(rgb_pictures(image)[0], caption, tuple(found)))
    return views


def _seen(network: nn.Module, preprocessing: Preprocessing, images: Tensor) -> Tensor:
    """What the network is given for images; in float64 where it was trained with that."""
    return preprocessing.normalize(images).to(next(network.parameters()).dtype)


def _title(card: NetworkCard) -> str:
    return f"Attention of {card.model}"


def _clipped(name: str, most: int = 26) -> str:
    """A name as wide as the image above it; the end of a file name tells more than its middle."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"


def _first_of_each_class(data: ImageData) -> tuple[Tensor, list[int]]:
    """The first test image of each of the first TEST_IMAGES classes."""
    found: dict[int, Tensor] = {}
    wanted = min(TEST_IMAGES, len(data.class_names))
    for images, labels in data.test_loader(batch_size=64):
        for image, label in zip(images, labels.tolist(), strict=True):
            if label < wanted:
                found.setdefault(label, image)
        if len(found) == wanted:
            break
    order = sorted(found)
    return torch.stack([found[label] for label in order]), order
