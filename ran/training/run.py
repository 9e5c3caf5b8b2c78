"""Training a network: what ``ran train`` does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import lightning as L
import torch
from rich.console import Console

from ..data import ImageData, load_data
from ..devices import choose_device, choose_precision
from ..errors import UserError
from ..files import require_folder
from ..pictures.masks import draw_test_masks
from ..pictures.plots import plot_curves
from ..processes import Processes, find_processes
from ..text import plural
from ..weights.network_card import NetworkCard, load_network, save_network
from . import runs
from .callbacks import Row
from .checkpoints import BEST, LAST, PREVIOUS, find_checkpoint, step_of
from .engine import Engine, run_engine
from .lock import FolderLock
from .settings import TrainingSettings, make_settings, resumed
from .summary import print_summary, say
from .trial import check_runs, enough_memory, usual_size


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
        unreadable: images that were left out because they could not be read.
    """

    folder: Path
    rows: list[Row]
    best: Row
    last: Row
    parameters: int
    unreadable: int = 0


def train(
    settings: TrainingSettings,
    console: Console | None = None,
    callbacks: Sequence[L.Callback] = (),
) -> TrainingResult:
    """Trains a network and writes ``settings.folder``.

    The folder gets ``model.safetensors`` and ``model.json`` (see ``ran.weights.network_card``), the
    Lightning checkpoints ``best.ckpt``, ``last.ckpt`` and ``previous.ckpt`` (and with
    ``keep_every`` those of single epochs, as ``epoch-0010.ckpt``), ``metrics.csv``,
    ``curves.png``, ``masks.png``, ``run.json`` and TensorBoard's logs, where that is installed.
    Everything that can be checked is checked before it is made.

    The seed fixes every random number, so on a CPU two trainings with one seed and one number of
    threads and processes end with the same weights, bit for bit, however often one of them was
    killed and resumed with the same settings; on a GPU as far as PyTorch's operators allow. The
    global random state of Python, NumPy and PyTorch is seeded too.

    With ``resume`` and more ``epochs`` a training goes on, finished or not, as one of that length:
    the learning rate of a step is the longer schedule's from there on, and ``run.json`` says from
    which step ("lengthened").

    Under ``torchrun`` every process calls this; the first one writes and speaks.

    Args:
        settings: what to train.
        console: gets progress; None for silence.
        callbacks: further ones of Lightning's.

    Raises:
        UserError: names the setting, file or folder that is wrong, or the step at which the loss
            was no longer a number. A new training that fails before its first checkpoint leaves
            no folder behind; one that continues deletes nothing that it found.
        SystemExit: SIGTERM or an interrupt stopped it. ``last.ckpt`` holds the last whole step.
    """
    processes = find_processes()
    with FolderLock(settings.folder) as lock:
        if processes.first:
            return _train(settings, console, callbacks, processes, lock)
        return _train(settings, None, callbacks, processes, None)


def _train(
    settings: TrainingSettings,
    console: Console | None,
    callbacks: Sequence[L.Callback],
    processes: Processes,
    lock: FolderLock | None,
) -> TrainingResult:
    """``lock``: of the process that writes; None in the others."""
    _check_place(settings)
    if lock and not settings.resume:
        runs.check_folder(settings.folder, overwrite=settings.overwrite)
    there = settings.folder / runs.RUN_FILE if settings.resume else settings.folder
    if lock and there.exists():
        lock.take()  # before anything in it is read; in no folder that is not a training's
    settings, checkpoint = _continue_from(settings, console, first=processes.first)
    usual = usual_size(settings)
    device = choose_device(settings.device)
    if processes.count > 1 and device.type == "cuda":
        device = torch.device("cuda", processes.local_rank)
    precision = choose_precision(settings.precision, device)
    if settings.sync_bn and device.type == "cpu":
        raise UserError("sync_bn: expected GPUs, PyTorch synchronises norms on them alone")
    size = settings.image_size or usual
    with enough_memory(settings):
        data = load_data(settings.data, size, settings.augmentation, settings.data_options())
    card = NetworkCard(settings.model, data.class_names, data.preprocessing, settings.model_options)

    L.seed_everything(settings.seed, workers=True, verbose=False)
    with enough_memory(settings):
        network = card.build()
    engine = Engine(
        network=network,
        card=card,
        data=data,
        settings=settings,
        device=device,
        precision=precision,
        processes=processes,
        checkpoint=checkpoint,
    )
    engine.check()
    # images that a batch norm sees at once
    together = engine.share * (processes.count if settings.sync_bn else 1)
    with enough_memory(settings):
        check_runs(network, card, together)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    if console:
        print_summary(console, engine, parameters)

    undo = _prepare_folder(settings, checkpoint, lock) if lock else None
    if console and lock and not lock.guards:
        say(console, f"{settings.folder}: its disk has no locks, nothing keeps others out of it")
    try:
        try:
            rows = run_engine(engine, console, callbacks)
        except BaseException:
            if undo and not any((settings.folder / name).exists() for name in (LAST, PREVIOUS)):
                undo()
            raise
        return _finish(settings, data, rows, parameters, processes)
    except OSError as error:
        if not _is_of(settings.folder, error):
            raise
        raise UserError(f"{settings.folder}: cannot write: {error}") from None


def _is_of(folder: Path, error: OSError) -> bool:
    """Whether a system's error is of writing to ``folder``, and not of somebody's data."""
    if error.errno is None or not isinstance(error.filename, str | None):
        return False
    return error.filename is None or folder.absolute() in Path(error.filename).absolute().parents


def _check_place(settings: TrainingSettings) -> None:
    """Raises UserError for an output folder that would be a class of the next training's images."""
    kind, _, path = settings.data.partition(":")
    folder = settings.folder.resolve()
    for part in ("train", "test", "val") if kind in ("folder", "imagenet") and path else ():
        images = Path(path).resolve() / part
        if images == folder or images in folder.parents:
            raise UserError(
                f"{settings.folder}: expected a folder outside {images}, whose folders are classes"
            )


def _prepare_folder(
    settings: TrainingSettings, checkpoint: Path | None, lock: FolderLock
) -> Callable[[], None] | None:
    """Makes the output folder ready; returns what takes that back, if it is a new training's."""
    folder = settings.folder
    runs.remove_leftovers(folder)
    if settings.resume and lock.held and not runs.is_new(folder):
        if checkpoint and checkpoint.name == PREVIOUS:
            # damaged, and it must not become the previous one of the next
            (folder / LAST).unlink(missing_ok=True)
        runs.note_length(folder, settings.to_json(), step_of(checkpoint) if checkpoint else 0)
        return None
    made = runs.start_folder(folder, settings.to_json(), lock, overwrite=settings.overwrite)
    return partial(runs.discard_folder, folder, made=made)


def _continue_from(
    settings: TrainingSettings, console: Console | None, *, first: bool
) -> tuple[TrainingSettings, Path | None]:
    """The settings to train with, and the checkpoint to start from, if there is one."""
    if not settings.resume:
        return settings, None
    if settings.overwrite:
        raise UserError("resume: expected it without overwrite, got both")
    require_folder(settings.folder)
    if runs.is_new(settings.folder) or not (first or (settings.folder / runs.RUN_FILE).exists()):
        return settings, None  # nothing there, or about to be made by the first process
    saved = make_settings(runs.saved_values(settings.folder))
    going_on = resumed(saved, settings)
    checkpoint, errors = find_checkpoint(settings.folder)
    if console:
        for error in errors:
            say(console, f"{error}; going on from {checkpoint}")
        if going_on.epochs > saved.epochs:
            say(
                console,
                f"{plural(going_on.epochs, 'epoch')} in place of {saved.epochs}: the learning rate "
                "goes on as in a training of that length",
            )
    return going_on, checkpoint


def _finish(
    settings: TrainingSettings,
    data: ImageData,
    rows: list[Row],
    parameters: int,
    processes: Processes,
) -> TrainingResult:
    folder = settings.folder
    result = TrainingResult(
        folder=folder,
        rows=rows,
        best=max(rows, key=lambda row: row["test_accuracy"]),
        last=rows[-1],
        parameters=parameters,
        unreadable=data.unreadable.count(),
    )
    if not processes.first:
        return result
    network, card = load_network(folder / BEST)
    save_network(network, card, folder)
    plot_curves(folder / runs.CURVES_FILE, rows, title=f"{settings.model} on {data.name}")
    draw_test_masks(network, card, data, folder / runs.MASKS_FILE)
    runs.write_run(
        folder / runs.RUN_FILE,
        replace(settings, resume=False, overwrite=False).to_json(),
        {
            "parameters": parameters,
            "best": result.best,
            "last": result.last,
            "unreadable_images": result.unreadable,
        },
        lengthened=runs.lengthened(folder),
    )
    return result
