"""Training a network: what ``ran train`` does."""

import copy
import logging
import shutil
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from torch import nn

from . import runs
from .callbacks import MetricsTable, ProgressLine, Row
from .checkpoints import NetworkCard, build_network, load_network, save_network
from .classifier import ImageClassifier
from .data import ImageData, load_data
from .devices import choose_device, choose_precision
from .errors import UserError
from .masks import draw_test_masks
from .plots import plot_curves
from .settings import TrainingSettings

#: Exit code of a training that SIGTERM stopped, as shells count.
TERMINATED = 128 + signal.SIGTERM


@dataclass(frozen=True)
class TrainingResult:
    """What a training ended with.

    Attributes:
        folder: where everything was written.
        rows: of metrics.csv, one an epoch.
        best: the row of the highest test accuracy, the first of several; ``model.safetensors``
            holds the weights of its epoch.
        last: the last row, whose choice owes nothing to the test images.
        parameters: of the network.
    """

    folder: Path
    rows: list[Row]
    best: Row
    last: Row
    parameters: int


def train(settings: TrainingSettings, console: Console | None = None) -> TrainingResult:
    """Trains a network and writes ``settings.folder``.

    The folder gets ``model.safetensors`` and ``model.json`` (see ``ran.checkpoints``), the
    Lightning checkpoints ``best.ckpt`` and ``last.ckpt``, ``metrics.csv``, ``curves.png``,
    ``masks.png`` and ``run.json``. Everything that can be checked is checked before it is made.

    The seed fixes every random number, so on a CPU two trainings with one seed and one number of
    threads end with the same weights, bit for bit; on a GPU as far as PyTorch's operators allow.
    The global random state of Python, NumPy and PyTorch is seeded too.

    Args:
        settings: what to train.
        console: gets progress; None for silence.

    Raises:
        UserError: names the setting, file or folder that is wrong. A training that fails in its
            first epoch leaves no folder behind.
        SystemExit: SIGTERM or an interrupt stopped it. ``last.ckpt`` holds the last whole epoch.
    """
    usual_size = _check_model(settings)
    runs.check_folder(settings.folder, overwrite=settings.overwrite)
    device = choose_device(settings.device)
    precision = choose_precision(settings.precision, device)
    data = load_data(settings.data, settings.image_size or usual_size, settings.augmentation)
    card = NetworkCard(settings.model, data.class_names, data.preprocessing, settings.model_options)

    L.seed_everything(settings.seed, workers=True, verbose=False)
    network = card.build()
    _check_runs(network, card, settings.batch_size)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    if console:
        summary = _summary(settings, data, device, precision, parameters)
        console.print(summary, highlight=False, soft_wrap=True)

    runs.start_folder(settings.folder, settings.to_json())
    rows = _fit(network, card, data, settings, device, precision, console)
    return _finish(settings, data, rows, parameters)


def _check_model(settings: TrainingSettings) -> int:
    """The side in pixels of the images that the model is usually given."""
    with torch.device("meta"):  # neither memory nor random numbers: only name and options
        network = build_network(settings.model, settings.model_options)
    return cast(dict[str, Any], network.pretrained_cfg)["input_size"][-1]


def _check_runs(network: nn.Module, card: NetworkCard, batch_size: int) -> None:
    """Raises UserError unless a batch of images gives its classes: too small images, say."""
    size = card.preprocessing.image_size
    images = torch.zeros(min(2, batch_size), card.preprocessing.channels, size, size)
    try:
        with torch.no_grad():
            # a copy: in training mode, which alone knows batch limits, running statistics change
            logits = copy.deepcopy(network).train()(images)
    except ValueError as error:
        raise UserError(f"model {card.model} at image size {size}: {error}") from None
    if getattr(logits, "shape", None) != (len(images), len(card.class_names)):
        raise UserError(f"model {card.model}: expected one value a class, options {card.options}")


def _summary(
    settings: TrainingSettings,
    data: ImageData,
    device: torch.device,
    precision: str,
    parameters: int,
) -> str:
    size, channels = data.preprocessing.image_size, data.preprocessing.channels
    return (
        f"{settings.model} ({parameters:,} parameters) on {data.name}: "
        f"{len(data.train):,} training and {len(data.test):,} test images of "
        f"{channels}×{size}×{size}, {len(data.class_names)} classes; {device}, {precision}"
    )


def _fit(
    network: nn.Module,
    card: NetworkCard,
    data: ImageData,
    settings: TrainingSettings,
    device: torch.device,
    precision: str,
    console: Console | None,
) -> list[Row]:
    classifier = ImageClassifier(
        network,
        card,
        data,
        lr=settings.lr,
        warmup_epochs=settings.warmup_epochs,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        label_smoothing=settings.label_smoothing,
    )
    table = MetricsTable(settings.folder / runs.METRICS_FILE)
    checkpoints = ModelCheckpoint(
        dirpath=settings.folder,
        filename="best",
        monitor="test_accuracy",
        mode="max",
        save_last=True,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    on_gpu = device.type == "cuda"
    with _quiet(), _global_settings_restored():
        if settings.threads:
            torch.set_num_threads(settings.threads)
        trainer = L.Trainer(
            default_root_dir=settings.folder,
            accelerator="gpu" if on_gpu else "cpu",
            devices=[device.index] if on_gpu else 1,
            precision=precision,  # type: ignore[arg-type]  # checked against the same names
            max_epochs=settings.epochs,
            callbacks=[table, *([ProgressLine(console, table)] if console else []), checkpoints],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            # on a CPU every operator is deterministic, and the flag only makes it slower
            deterministic="warn" if on_gpu else None,
        )
        try:
            trainer.fit(
                classifier,
                data.train_loader(settings.batch_size),
                data.test_loader(settings.batch_size),
            )
        except BaseException as error:
            if not table.rows:
                shutil.rmtree(settings.folder)
            if isinstance(error, UserError):
                # a process that reads images puts its traceback before the message
                raise UserError(str(error).strip().rpartition("UserError: ")[2]) from None
            if isinstance(error, SIGTERMException):
                raise SystemExit(TERMINATED) from None  # Lightning's own ends with code 0
            raise
    return table.rows


def _finish(
    settings: TrainingSettings, data: ImageData, rows: list[Row], parameters: int
) -> TrainingResult:
    folder = settings.folder
    network, card = load_network(folder / "best.ckpt")
    save_network(network, card, folder)
    plot_curves(folder / runs.CURVES_FILE, rows, title=f"{settings.model} on {data.name}")
    draw_test_masks(network, card, data, folder / runs.MASKS_FILE)
    result = TrainingResult(
        folder=folder,
        rows=rows,
        best=max(rows, key=lambda row: row["test_accuracy"]),
        last=rows[-1],
        parameters=parameters,
    )
    runs.write_run(
        folder,
        settings.to_json(),
        {"parameters": parameters, "best": result.best, "last": result.last},
    )
    return result


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to itself what Lightning says of things its user here cannot change."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _global_settings_restored() -> Iterator[None]:
    """A training sets some of PyTorch's global settings, Lightning more; here they are put back."""
    mode, benchmark = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(mode)
        torch.backends.cudnn.benchmark = benchmark
