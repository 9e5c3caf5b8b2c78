"""Classes of images: what ``ran predict`` does of files."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data.given import Given, as_image, each_given
from ..data.listing import image_files
from ..devices import choose_device
from ..errors import UserError
from ..files import require_folder, require_path, require_writable
from ..serving.deploy import deploy as make_deployed
from ..weights.inference import (
    class_probabilities,
    load_image,
    require_finite,
    require_image_channels,
)
from ..weights.network_card import NetworkCard, load_network


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image.

    Attributes:
        path: of the image; None where it was given itself.
        classes: names and probabilities (0 to 1), most probable first; none where it is unreadable.
        error: why it could not be read, where it was left out for that.
    """

    path: Path | None
    classes: tuple[tuple[str, float], ...]
    error: str | None = None


def find_images(given: Sequence[str | Path]) -> dict[Path, Path]:
    """The image files among files and in folders, at any depth, in order of their names.

    Returns:
        For each file its path from the folder it was found in, or its name where it was given
        itself.

    Raises:
        UserError: nothing was given, or a folder has no images in it.
    """
    found: dict[Path, Path] = {}
    for path in (require_path("images", each) for each in given):
        if not path.is_dir():
            found[path] = Path(path.name)
            continue
        files = sorted(image_files(path))
        if not files:
            raise UserError(f"{path}: expected images in the folder, found none")
        found |= {file: file.relative_to(path) for file in files}
    if not found:
        raise UserError("images: expected at least one image or folder of images")
    return found


@torch.no_grad()
def predict(
    checkpoint: nn.Module | str | Path,
    images: Given | Sequence[Given],
    *,
    topk: int = 5,
    masks: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    batch_size: int = 64,
    skip_unreadable: bool = False,
    deploy: bool = True,
) -> list[Prediction]:
    """The ``topk`` most probable classes (or all, if there are fewer) of each image.

    Args:
        checkpoint: a folder or file, or a network in memory, which stays as it is; as for
            ``ran.weights.network_card.load_network``.
        images: path of an image file or of a folder that holds image files at any depth, a PIL
            image, an array (H, W) or (H, W, C), a tensor (C, H, W), a batch of either, or several
            of these. Arrays and tensors hold uint8, or floats from 0 to 1, not yet resized or
            normalised. A file that is there twice is classified once.
        topk: how many classes to give.
        masks: folder to write a picture of the attention masks of each image to; made if missing.
            None for no pictures, as of images that are no files.
        overwrite: replace pictures that are there already.
        device: as for ``ran.devices.choose_device``.
        batch_size: images computed at once.
        skip_unreadable: go on where a file cannot be read; it has no classes then, and an error.
            A file that is not there ends it all the same, and so does having none to go on with.
        deploy: predict with what ``ran.deploy`` makes of the network, which is faster, and not with
            the network itself. Both give the same up to rounding.

    Raises:
        UserError: an argument is out of its range, a file is missing or unreadable, or a picture
            cannot be written, or the network gives NaN. Pictures are written, each in one step,
            after all predictions.
    """
    for name, value in (("topk", topk), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name}: expected a positive integer, got {value}")
    chosen = choose_device(device)
    sources, files = _sources(images)
    if masks is not None and len(files) < len(sources):
        raise UserError("masks: expected None for images that are no files, got a folder")
    pictures = (
        {} if masks is None else _picture_paths(files, require_path("masks", masks), overwrite)
    )
    network, card = load_network(checkpoint)
    network.to(chosen)
    if masks is not None:
        from ..pictures.masks import require_masks  # matplotlib takes a while to load

        where = "model" if isinstance(checkpoint, nn.Module) else checkpoint
        require_masks(network, card, where)

    fast = make_deployed(network) if deploy else network
    predictions = []
    if files:
        require_image_channels(card)
    for start in range(0, len(sources), batch_size):
        batch = sources[start : start + batch_size]
        loaded, errors = _readable(batch, card, skip=skip_unreadable)
        found = iter(_most_probable(fast, card, loaded.to(chosen), topk) if len(loaded) else ())
        predictions += [
            Prediction(
                source if isinstance(source, Path) else None, () if error else next(found), error
            )
            for (_, source), error in zip(batch, errors, strict=True)
        ]
    unreadable = [prediction.error for prediction in predictions if prediction.error]
    if len(unreadable) == len(predictions):
        raise UserError(f"images: expected one that can be read at least, first {unreadable[0]}")

    if pictures:
        from ..pictures.masks import draw_network_masks

        for path in [each.path for each in predictions if each.path and not each.error]:
            picture = pictures[path]
            _make_folder(picture.parent)
            draw_network_masks(network, card, [path], picture)
    return predictions


def _sources(
    images: Given | Sequence[Given],
) -> tuple[list[tuple[str, Given]], dict[Path, Path]]:
    """The images by their names in messages, in order, and what ``find_images`` gives of files."""
    sources: list[tuple[str, Given]] = []
    files: dict[Path, Path] = {}
    for number, each in enumerate(each_given(images)):
        if not isinstance(each, str | Path):
            sources.append((f"images[{number}]", each))
            continue
        found = {path: name for path, name in find_images([each]).items() if path not in files}
        files |= found
        sources += [(str(path), path) for path in found]
    if not sources:
        raise UserError("images: expected at least one image or folder of images")
    return sources, files


def _readable(
    sources: Sequence[tuple[str, Given]], card: NetworkCard, *, skip: bool
) -> tuple[Tensor, list[str | None]]:
    """The images that can be read, and for each what is wrong, None where nothing is."""
    images: list[Tensor] = []
    errors: list[str | None] = []
    for name, source in sources:
        try:
            if isinstance(source, Path):
                images.append(load_image(source, card))
            else:
                pixels = as_image(source, card.preprocessing.channels, name)
                images.append(card.preprocessing.resize(pixels))
            errors.append(None)
        except UserError as error:
            if not skip or (isinstance(source, Path) and not os.path.lexists(source)):
                raise
            errors.append(str(error))
    return torch.stack(images) if images else torch.empty(0), errors


def _most_probable(
    network: nn.Module, card: NetworkCard, images: Tensor, count: int
) -> list[tuple[tuple[str, float], ...]]:
    probabilities = class_probabilities(network, card.preprocessing, images)
    require_finite(probabilities, card)
    top = probabilities.topk(min(count, len(card.class_names)))
    return [
        tuple(zip((card.class_names[number] for number in numbers), values, strict=True))
        for values, numbers in zip(top.values.tolist(), top.indices.tolist(), strict=True)
    ]


def _picture_paths(files: dict[Path, Path], folder: Path, overwrite: bool) -> dict[Path, Path]:
    """Where the picture of each image goes: the images' names, numbered where they are equal."""
    require_folder(folder)
    pictures: dict[Path, Path] = {}
    taken: set[Path] = set()
    for file, relative in files.items():
        picture, number = folder / relative.with_suffix(".png"), 1
        while picture in taken:
            number += 1
            picture = picture.with_name(f"{relative.stem}-{number}.png")
        taken.add(picture)
        pictures[file] = picture
        if picture.parent.is_dir():
            require_writable(picture, overwrite=overwrite)
    return pictures


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make the folder: {error.strerror}") from None
