"""Lightning, set up for a training."""

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from rich.console import Console
from timm.optim import list_optimizers
from torch import nn

from ..checks import require_known
from ..data import ImageData
from ..errors import UserError
from ..processes import Processes
from ..weights.network_card import NetworkCard
from . import runs
from .callbacks import MetricsTable, Row
from .checkpoints import CheckpointFiles, step_of
from .classifier import ImageClassifier, make_optimizer
from .logs import CurveLog
from .progress import ProgressLine
from .saving import Checkpoints
from .settings import TrainingSettings
from .stopping import LossGuard, StopRequest
from .watch import Watch


@dataclass(frozen=True)
class Engine:
    """All that a training is made of; see ``ran.training.run.train``.

    Attributes:
        checkpoint: to go on from; None to start.
    """

    network: nn.Module
    card: NetworkCard
    data: ImageData
    settings: TrainingSettings
    device: torch.device
    precision: str
    processes: Processes
    checkpoint: Path | None

    @property
    def steps_per_epoch(self) -> int:
        return len(self._train_loader(None)) // self.settings.accumulate

    @property
    def epochs(self) -> int:
        """Of the whole training; the last one may end early."""
        iterations = self.settings.iterations
        return math.ceil(iterations / self.steps_per_epoch) if iterations else self.settings.epochs

    @property
    def share(self) -> int:
        """Images that one process computes at once."""
        loader: Any = self._train_loader(None)
        return int(getattr(loader.batch_sampler, "share", loader.batch_size))

    def check(self) -> None:
        """Raises UserError for an optimizer or batches that cannot be made."""
        settings = self.settings
        try:
            names = [str(name) for name in list_optimizers()]
            where = "timm.optim.list_optimizers()"
            require_known("optimizer", names, settings.optimizer, listed=where)
        except ValueError as error:
            raise UserError(str(error)) from None
        if settings.optimizer == "adahessian":  # Lightning's backward makes no second derivatives
            raise UserError("optimizer: expected one of first derivatives, got 'adahessian'")
        make_optimizer(self.network, settings)
        if (settings.mixup or settings.cutmix) and self.share % 2:
            raise UserError(f"batch_size: mixup and cutmix need an even number, got {self.share}")
        self.data.test_loader(1, rank=self.processes.rank, processes=self.processes.count)

    def _train_loader(self, trainer: L.Trainer | None, data: ImageData | None = None) -> Any:
        accumulate = self.settings.accumulate
        return (data or self.data).train_loader(
            self.settings.batch_size,
            parts=accumulate,
            seed=self.settings.seed,
            rank=self.processes.rank,
            processes=self.processes.count,
            done=(lambda: trainer.global_step * accumulate) if trainer else None,
        )

    def loaders(self, trainer: L.Trainer) -> tuple[Any, Any]:
        """Of training images, from where ``trainer`` is, and of test images."""
        data = self.data.on(self.device)
        share = max(1, self.settings.batch_size // self.processes.count)
        test = data.test_loader(share, rank=self.processes.rank, processes=self.processes.count)
        return self._train_loader(trainer, data), test


def run_engine(
    engine: Engine, console: Console | None, callbacks: Sequence[L.Callback]
) -> list[Row]:
    """Trains; returns the rows of metrics.csv.

    Raises what ``ran.training.run.train`` does.
    """
    settings = engine.settings
    classifier = ImageClassifier(
        engine.network, engine.card, engine.data, settings, engine.steps_per_epoch
    )
    table = MetricsTable(settings.folder / runs.METRICS_FILE)
    guard, stop = LossGuard(classifier.learning_rate, settings.folder), StopRequest()
    steps = classifier.schedule.steps
    watch = Watch(
        engine.processes,
        settings.timeout,
        settings.folder,
        (lambda: None) if console is None else lambda: (console.show_cursor(), None)[1],
    )
    own = [watch, table, guard, stop, _StopAfter(steps)]
    if console:
        own.append(ProgressLine(console, table, steps))
    keep = Checkpoints(
        settings.folder,
        settings.checkpoint_steps,
        settings.keep_every,
        settings.accumulate,
        guard,
        stop,
    )
    with _quiet(), _global_settings_restored(), watch.naming():
        if settings.threads:
            torch.set_num_threads(settings.threads)
        trainer = L.Trainer(
            default_root_dir=settings.folder,
            **_devices(engine),
            precision=engine.precision,  # type: ignore[arg-type]  # checked against the same names
            max_epochs=engine.epochs,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.clip_norm or None,
            sync_batchnorm=settings.sync_bn,
            callbacks=[*own, *callbacks, keep],
            logger=_loggers(engine),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the data's order knows the processes
        )
        train_loader, test_loader = engine.loaders(trainer)
        try:
            trainer.fit(
                classifier,
                train_loader,
                test_loader,
                ckpt_path=str(engine.checkpoint) if engine.checkpoint else None,
            )
        except UserError as error:
            # a process that reads images puts its traceback before the message
            raise UserError(str(error).strip().rpartition("UserError: ")[2]) from None
    return table.rows


class _StopAfter(L.Callback):
    """Ends the training after ``steps``, in the middle of an epoch if need be, with a test."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step >= self._steps:
            trainer.should_stop = True


def _devices(engine: Engine) -> dict[str, Any]:
    """What Lightning is told of devices and processes."""
    on_gpu, processes = engine.device.type == "cuda", engine.processes
    arguments: dict[str, Any] = {"accelerator": "gpu" if on_gpu else "cpu"}
    plugins: list[Any] = [CheckpointFiles()]
    if processes.count == 1:
        # torchrun is the one launcher: nothing else in the environment starts processes
        plugins.append(LightningEnvironment())
        arguments["devices"] = [engine.device.index] if on_gpu else 1
    else:
        plugins.append(TorchElasticEnvironment())
        arguments["devices"] = processes.local_count
        arguments["num_nodes"] = processes.machines
        arguments["strategy"] = "ddp"
    if on_gpu:  # on a CPU every operator is deterministic, and the flag only makes it slower
        arguments["deterministic"] = engine.settings.deterministic
        arguments["benchmark"] = not engine.settings.deterministic
    return {**arguments, "plugins": plugins}


def _loggers(engine: Engine) -> Any:
    if find_spec("tensorboard") is None:
        return False
    # what a killed training wrote after its last checkpoint is written again: TensorBoard forgets
    # the first of the two
    purge = step_of(engine.checkpoint) if engine.checkpoint else 0
    return CurveLog(engine.settings.folder / runs.LOG_FOLDER, purge)


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
