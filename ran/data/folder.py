"""Image files in folders: ``train/CLASS/image`` and ``test/CLASS/image`` (or ``val/``)."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from ..errors import UserError
from ..processes import usable_cores
from .augment import unchanged
from .dataset import Batch, ImageData, InMemory, Split, Unreadable
from .decoding import check_images, open_image
from .images import SMALL_IMAGE, Preprocessing
from .listing import image_files, is_hidden
from .options import DataOptions
from .order import seed_all
from .transforms import to_size, training_transform

#: What the centre crop keeps of images larger than SMALL_IMAGE: 224 of 256, as is usual.
CROP_FRACTION = 0.875
#: Bytes of uint8 up to which all images of a folder are held in memory at their final size.
IN_MEMORY = 4 << 30
#: Files one after another that may be unreadable before that ends a training.
MOST_IN_A_ROW = 20


@dataclass(frozen=True)
class Files:
    """Images read from their files when they are asked for.

    Attributes:
        samples: path and class number of each.
        transform: of an image to (C, H, W) uint8, at random if ``random``.
        channels: 1 or 3.
        random: the transform is seeded for each batch of a ``Draw``.
        marks: one a sample, where an unreadable file is marked and the next one taken in its
            place; None makes it an error.
        test: an unreadable file has none taken in its place, which would count another one twice:
            a batch has fewer images then.
    """

    samples: Sequence[tuple[str, int]]
    transform: Callable[[Image.Image], Tensor]
    channels: int
    random: bool = False
    marks: Tensor | None = None
    test: bool = False

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        seed = getattr(indices, "seed", None)
        if self.random and seed is not None:
            seed_all(seed)
        images, labels = [], []
        for index in indices:  # one at a time: at its full size each may take hundreds of MB
            if sample := self._read(index):
                images.append(self.transform(sample[0]))
                labels.append(sample[1])
        return (
            torch.stack(images) if images else torch.empty(0, dtype=torch.uint8),
            torch.tensor(labels, dtype=torch.int64),
        )

    def _open(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.samples[index]
        return open_image(path, self.channels), label

    def _read(self, index: int) -> tuple[Image.Image, int] | None:
        for _ in range(MOST_IN_A_ROW):
            try:
                return self._open(index)
            except UserError as error:
                if self.marks is None:
                    raise
                self.marks[index] = 1
                if self.test:
                    return None
                reason = error
                index = (index + 1) % len(self.samples)
        raise UserError(f"{MOST_IN_A_ROW} images one after another are unreadable: {reason}")


def load_folder(
    root: Path,
    image_size: int,
    options: DataOptions,
    *,
    random_scale: bool,
    check: bool = True,
    crop_fraction: float | None = None,
    test_only: bool = False,
) -> ImageData:
    """The images under ``root``; in memory where they are small enough together.

    Grayscale where every image is, RGB otherwise. Without augmentation in batches: the caller
    sets that.

    Args:
        root: holds ``train`` and ``test`` or, where that is missing, ``val``; each has one folder
            a class, the same in both.
        image_size: side of the square that the network sees.
        options: how to read them.
        random_scale: train on crops of random scale, ratio and colour.
        check: decode all images once to find damaged ones. Without, they are found when they are
            read, and the images are RGB: for a set that takes hours to read.
        crop_fraction, test_only: as for ``ran.data.load_data``.

    Raises:
        UserError: names a missing folder, a class without images or in one part only, or an
            image that cannot be read.
    """
    part_roots = _parts(root, test_only=test_only)
    class_names = [_class_names(part) for part in part_roots]
    if class_names[0] != class_names[-1]:
        odd = sorted(set(class_names[0]) ^ set(class_names[1]))[0]
        where = part_roots[0] if odd in class_names[1] else part_roots[1]
        raise UserError(f"{where}: expected the same classes as beside it, has no {odd!r}")

    unreadable, grayscale = Unreadable(), False
    samples = [_samples(part, names) for part, names in zip(part_roots, class_names, strict=True)]
    if check:
        grayscale, samples = _readable(samples, unreadable, skip=options.skip_unreadable)
    for part, names, kept in zip(part_roots, class_names, samples, strict=True):
        _refuse_empty_classes(part, names, kept)

    channels, size = 1 if grayscale else 3, image_size
    preprocessing = Preprocessing(
        image_size=size,
        crop_fraction=crop_fraction or usual_crop(size),
        mean=_gray(IMAGENET_DEFAULT_MEAN) if grayscale else IMAGENET_DEFAULT_MEAN,
        std=_gray(IMAGENET_DEFAULT_STD) if grayscale else IMAGENET_DEFAULT_STD,
    )
    plain = partial(to_size, preprocessing)
    splits: list[Split] = [Files((), plain, channels)] if test_only else []
    for part, kept in zip(part_roots, samples, strict=True):
        test = part == part_roots[-1]
        marks = unreadable.new_marks(len(kept), test=test) if options.skip_unreadable else None
        is_random = random_scale and not test
        transform = training_transform(size, options) if is_random else plain
        split = Files(kept, transform, channels, is_random, marks, test)
        fits = len(kept) * channels * size * size <= IN_MEMORY
        splits.append(_decoded(split) if check and fits and not is_random else split)
    return ImageData(
        name=f"folder:{root}",
        class_names=tuple(class_names[0]),
        preprocessing=preprocessing,
        train=splits[0],
        test=splits[1],
        augmentation=unchanged,
        workers=options.worker_count(),
        unreadable=unreadable,
    )


def _readable(
    parts: list[list[tuple[str, int]]], unreadable: Unreadable, *, skip: bool
) -> tuple[bool, list[list[tuple[str, int]]]]:
    """Whether all images are grayscale, and the samples that are left."""
    paths = [path for part in parts for path, _ in part]
    grayscale, errors = check_images(paths, skip=skip)
    bad = {path: error for path, error in zip(paths, errors, strict=True) if error}
    if bad:
        unreadable.found, unreadable.first = len(bad), str(next(iter(bad.values())))
        unreadable.tested = sum(path in bad for path, _ in parts[-1])
    return grayscale, [[sample for sample in part if sample[0] not in bad] for part in parts]


def _decoded(files: Files) -> InMemory:
    chunks = [range(start, min(start + 256, len(files))) for start in range(0, len(files), 256)]
    with ThreadPoolExecutor(usable_cores()) as pool:
        batches = list(pool.map(files.__getitems__, chunks))
    return InMemory(
        torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])
    )


def usual_crop(image_size: int) -> float:
    """The ``crop_fraction`` of networks for images of this size."""
    return 1.0 if image_size <= SMALL_IMAGE else CROP_FRACTION


def _parts(root: Path, *, test_only: bool) -> list[Path]:
    if not root.is_dir():
        raise UserError(f"{root}: expected a folder of images, found no folder there")
    test = root / "test" if (root / "test").is_dir() else root / "val"
    parts = [(test, "test/ or val/")]
    if not test_only:
        parts.insert(0, (root / "train", "train/"))
    for part, expected in parts:
        if not part.is_dir():
            raise UserError(f"{root}: expected {expected} with a folder for each class in it")
    return [part for part, _ in parts]


def _class_names(part: Path) -> list[str]:
    folders = (entry for entry in part.iterdir() if entry.is_dir())
    names = sorted(entry.name for entry in folders if not is_hidden(entry.name))
    if len(names) < 2:
        raise UserError(f"{part}: expected folders of 2 or more classes, has {len(names)}")
    for name in names:
        # it becomes a class's name, which files of UTF-8 hold
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise UserError(f"{part / name}: expected a class's name in UTF-8")
    return names


def _samples(part: Path, class_names: Sequence[str]) -> list[tuple[str, int]]:
    return [
        (str(path), number)
        for number, name in enumerate(class_names)
        for path in image_files(part / name)
    ]


def _refuse_empty_classes(
    part: Path, class_names: Sequence[str], samples: list[tuple[str, int]]
) -> None:
    found = {label for _, label in samples}
    for number, name in enumerate(class_names):
        if number not in found:
            raise UserError(f"{part / name}: expected images of class {name!r}, has none")


def _gray(rgb: tuple[float, ...]) -> tuple[float, ...]:
    return (round(sum(rgb) / len(rgb), 3),)
