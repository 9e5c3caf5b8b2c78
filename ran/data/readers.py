"""Data sets that timm reads: Hugging Face's (``hfds/``), WebDataset's (``wds/``) and others."""

import math
from functools import partial
from importlib.util import find_spec
from typing import IO, Any

import torch
from PIL import Image
from timm.data import create_dataset
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.readers import reader_wds
from torch.utils.data import DataLoader, IterableDataset

from ..errors import UserError
from .augment import unchanged
from .dataset import Batch, ImageData, Unreadable
from .decoding import open_image
from .folder import Files, usual_crop
from .images import Preprocessing
from .options import DataOptions
from .order import seed_all, seed_of
from .transforms import to_size, training_transform

#: Before the name of a set: timm's readers, and the package that each needs, as pip calls it.
READERS = {
    "hfds": "datasets",
    "hfids": "datasets",
    "wds": "webdataset",
    "tfds": "tensorflow-datasets",
}


class Indexed(Files):
    """A set whose images timm reads by number; ``samples`` is timm's reader."""

    def _open(self, index: int) -> tuple[Image.Image, int]:
        sample: Any = self.samples[index]  # timm's reader gives files, not their names
        file, label, *_ = sample
        try:
            with file:  # a reader gives open files, of which a process may have a thousand
                return open_image(file, self.channels), int(label)
        except UserError as error:  # which names the open file, not where it is from
            name = self.samples.filename(index)  # type: ignore[attr-defined]  # of readers
            raise UserError(f"{name}: {str(error).partition(': ')[2]}") from None


class Stream:
    """A set that timm reads from its first image to its last, shuffled as it comes.

    A resumed training goes on after as many batches as before, but in another order: a stream
    has no position to return to. timm leaves out what it cannot read, with a warning.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self._dataset, self._seed = dataset, seed

    def __len__(self) -> int:
        return len(self._dataset)

    def stream(self, batch_size: int, batches: int | None, workers: int) -> "DataLoader[Batch]":
        """Batches of ``batch_size``; in training exactly ``batches`` of them, whole ones."""
        if hasattr(self._dataset, "set_loader_cfg"):
            self._dataset.set_loader_cfg(num_workers=workers)
        loader: DataLoader[Batch] = _Stream(
            self._dataset,
            batch_size=batch_size,
            drop_last=batches is not None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_collate,
            worker_init_fn=partial(_seed_worker, self._seed),
        )
        loader.batches = batches or math.ceil(len(self._dataset) / batch_size)
        return loader


class _Stream(DataLoader[Batch]):
    batches = 0

    def __len__(self) -> int:
        return self.batches


def load_reader(
    name: str,
    image_size: int,
    options: DataOptions,
    *,
    random_scale: bool,
    crop_fraction: float | None = None,
    test_only: bool = False,
) -> ImageData:
    """The set called ``name``: ``READER/NAME`` or ``READER/NAME:PATH``, as RGB images.

    Args:
        name: PATH is where the set's files are, or may be kept.
        image_size: side of the square that the network sees.
        options: how to read it; ``train_split`` and ``test_split`` name its parts.
        random_scale: train on crops of random scale, ratio and colour.
        crop_fraction, test_only: as for ``ran.data.load_data``.

    Raises:
        UserError: the reader's package is missing, the set cannot be opened, or its classes are
            unknown and ``num_classes`` is not given.
    """
    reader, _, path = name.partition(":")
    preprocessing = Preprocessing(
        image_size=image_size,
        crop_fraction=crop_fraction or usual_crop(image_size),
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )
    plain = partial(to_size, preprocessing)
    if not test_only:
        train = _open(reader, path, options.train_split, options, training=True)
    test = _open(reader, path, options.test_split, options, training=False)
    if test_only:
        train = test
    unreadable = Unreadable()
    transform = training_transform(image_size, options) if random_scale else plain
    return ImageData(
        name=name,
        class_names=_class_names(name, train, options.num_classes),
        preprocessing=preprocessing,
        train=_split(train, transform, options, unreadable, random=random_scale),
        test=_split(test, plain, options, unreadable, test=True),
        augmentation=unchanged,
        workers=options.worker_count(),
        unreadable=unreadable,
    )


def _open(reader: str, path: str, split: str, options: DataOptions, *, training: bool) -> Any:
    package = READERS[reader.partition("/")[0]]
    missing = UserError(
        f"{reader}: needs the package {package}, which is not installed: pip install {package}"
    )
    # asked first: some of timm's readers print when they miss it, one fails later in other words
    if not _installed(package.replace("-", "_")):
        raise missing
    _open_images_here()
    try:
        return create_dataset(
            reader,
            root=path or None,
            split=split,
            is_training=training,
            download=options.download,
            seed=options.seed,
        )
    except ImportError:
        raise missing from None
    except Exception as error:  # every library behind a reader has exceptions of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{reader}: cannot open its part {split!r}: {reason}") from None


class _Image:
    """In place of Pillow's module in timm's reader of WebDatasets, of which it uses ``open``."""

    @staticmethod
    def open(file: IO[bytes]) -> Image.Image:
        return open_image(file, 3)


def _open_images_here() -> None:
    """Has timm open what a shard holds as any other image: it asks Pillow for all its formats."""
    reader_wds.Image = _Image  # type: ignore[assignment]  # of which timm uses this alone


def _installed(module: str) -> bool:
    # a folder of that name where Python looks, say one of data, is found too, without an origin
    spec = find_spec(module)
    return spec is not None and spec.origin is not None


def _split(
    dataset: Any,
    transform: Any,
    options: DataOptions,
    unreadable: Unreadable,
    *,
    random: bool = False,
    test: bool = False,
) -> Any:
    if isinstance(dataset, IterableDataset):
        dataset.transform = transform  # type: ignore[attr-defined]  # of timm's
        return Stream(dataset, options.seed)
    count = len(dataset.reader)
    marks = unreadable.new_marks(count, test=test) if options.skip_unreadable else None
    return Indexed(dataset.reader, transform, 3, random, marks, test)


def _class_names(name: str, dataset: Any, count: int | None) -> tuple[str, ...]:
    numbers = getattr(dataset.reader, "class_to_idx", None)
    if numbers:
        return tuple(str(key) for key in sorted(numbers, key=numbers.__getitem__))
    if count is None:
        raise UserError(
            f"{name}: its classes are not named; --set num_classes=N says how many, for ran eval "
            "--num-classes N"
        )
    return tuple(str(number) for number in range(count))


def _collate(samples: list[Any]) -> Batch:
    return (
        torch.stack([torch.as_tensor(image) for image, *_ in samples]),
        torch.tensor([int(label) for _, label, *_ in samples]),
    )


def _seed_worker(seed: int, worker: int) -> None:
    _open_images_here()  # a process that is not forked has imported timm anew
    seed_all(seed_of(seed, worker))
