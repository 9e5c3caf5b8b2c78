"""The settings of a training: what a recipe's file and ``--set`` may say."""

import json
import re
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import require_known
from ..errors import UserError
from ..files import require_path
from .ranges import check_values, shown

if TYPE_CHECKING:
    from ..data.options import DataOptions

#: The shapes that the learning rate takes after its rise; see ``ran.training.schedules``.
SCHEDULES = ("cosine", "linear", "multistep", "constant")
#: What may differ when a training is resumed: it decides where and how fast, not what comes out.
FREE_ON_RESUME = frozenset(
    {"output", "overwrite", "resume", "device", "threads", "workers", "download"}
    | {"checkpoint_steps", "keep_every", "timeout"}
    # until a file cannot be read it changes nothing; where it leaves files out from the start, the
    # checkpoint knows that it was written with more images (``ran.training.classifier``)
    | {"skip_unreadable"}
)


@dataclass(frozen=True)
class TrainingSettings:
    """What to train on what, and how. The defaults follow the papers' training where they can.

    Times (``warmup``, ``milestones``, ``mix_until``) are in epochs, or in iterations where
    ``iterations`` gives the length.

    Raises UserError for a value of another type or out of its range, naming it.
    """

    model: str
    """A name of ``ran.list_models()``."""
    data: str
    """As for ``ran.data.load_data``."""
    model_options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of ``ran.create_model``."""

    epochs: int = 100
    """Passes over the training images."""
    iterations: int | None = None
    """Steps of the optimizer, in place of ``epochs``."""
    batch_size: int = 64
    """Images in a step, over all processes."""
    accumulate: int = 1
    """Parts that a process computes its share of a step in, one after another."""
    seed: int = 0
    """Fixes every random number."""

    optimizer: str = "sgd"
    """A name of ``timm.optim.list_optimizers()``; "sgd" is Nesterov's."""
    lr: float = 0.1
    """Learning rate at its peak."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_all: bool = True
    """Weight decay of biases and norms too."""
    clip_norm: float = 0.0
    """Largest norm of the gradients, 0 for any."""
    schedule: str = "cosine"
    """A name in ``SCHEDULES``."""
    warmup: float = 1.0
    """Time in which the learning rate rises to its peak."""
    milestones: list[float] = field(default_factory=list)
    """Times at which a multistep schedule multiplies the rate by ``decay_rate``."""
    decay_rate: float = 0.1

    label_smoothing: float = 0.0
    """Share of the target that is given to all classes."""
    mixup: float = 0.0
    """Alpha of mixup, 0 for none."""
    cutmix: float = 0.0
    """Alpha of CutMix, 0 for none; with mixup too, each batch gets one of them."""
    mix_until: float | None = None
    """Time at which both end; None for never."""
    ema: float = 0.0
    """Decay of the moving average of the weights, which is then tested and saved; 0 for none."""

    image_size: int | None = None
    """Side in pixels of the square that the network sees; the model's usual one if None."""
    augmentation: str = "auto"
    """A name in ``ran.data.AUGMENTATIONS``."""
    cutout: int = 0
    """Side in pixels of a square that is blanked in each training image."""
    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    """Least and greatest share of the image's area that scale-flip crops."""
    ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    """Least and greatest aspect ratio of that crop."""
    color_jitter: float = 0.4
    """Of scale-flip: change of brightness, contrast and saturation."""
    auto_augment: str | None = None
    """Of scale-flip: timm's name of an automatic augmentation, such as "rand-m9"."""
    train_split: str = "train"
    """Of timm's readers: the name of the part to train on."""
    test_split: str = "validation"
    """Of timm's readers: the name of the part to test on."""
    num_classes: int | None = None
    """Of timm's readers, where the set does not say it."""
    download: bool = False
    """Fetch the data set where it is missing and can be fetched."""
    skip_unreadable: bool = False
    """Leave images that cannot be read out, and count them."""
    workers: int | None = None
    """Processes that read images ahead; None takes what suits the machine."""

    output: Path | None = None
    """Folder to write; ``runs/MODEL-DATA`` if None."""
    overwrite: bool = False
    """Replace that folder if a training wrote it."""
    resume: bool = False
    """Continue the training in that folder, or start it if there is none."""
    checkpoint_steps: int = 1000
    """Steps after which ``last.ckpt`` is written, beside each epoch's end."""
    keep_every: int = 0
    """Epochs after which the network is kept, as ``epoch-0010.ckpt``; 0 keeps none."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: str = "auto"
    """auto, or one of ``ran.devices.PRECISIONS``."""
    threads: int | None = None
    """Processor cores that compute; None leaves it to PyTorch, which takes them all."""
    timeout: float = 300.0
    """Of several processes: seconds without a sign of one after which the others end."""
    channels_last: bool = True
    compile: bool = False
    """Compile the network with torch.compile."""
    deterministic: bool = False
    """On a GPU, use operators that give the same bits every run only; a CPU always does."""
    sync_bn: bool = False
    """Normalise by the images of all processes; needs GPUs."""

    def __post_init__(self) -> None:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        check_values(values, typing.get_type_hints(TrainingSettings))
        if self.schedule not in SCHEDULES:
            raise UserError(
                f"schedule: expected one of {', '.join(SCHEDULES)}, got {shown(self.schedule)}"
            )
        self._check_times()
        for name in ("scale", "ratio"):
            low_high = getattr(self, name)
            if len(low_high) != 2 or low_high[0] > low_high[1]:
                raise UserError(f"{name}: expected [least, greatest], got {shown(low_high)}")
        try:
            json.dumps(self.model_options)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"model_options: expected what JSON can hold: {error}") from None

    def _check_times(self) -> None:
        unit = "iterations" if self.iterations else "epochs"
        length = self.iterations or self.epochs
        for name in ("warmup", "mix_until"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= length:
                raise UserError(f"{name}: expected 0 to {unit} ({length}), got {shown(value)}")
        if sorted(set(self.milestones)) != self.milestones or any(
            not 0 < time < length for time in self.milestones
        ):
            raise UserError(
                f"milestones: expected rising times in 0 to {unit} ({length}), got "
                f"{shown(self.milestones)}"
            )
        if bool(self.milestones) != (self.schedule == "multistep"):
            raise UserError(
                f"milestones: expected some if and only if schedule is multistep, got "
                f"{shown(self.milestones)} with {self.schedule}"
            )

    @property
    def folder(self) -> Path:
        """Where the training writes."""
        return self.output or _default_folder(self.model, self.data)

    def steps(self, time: float, steps_per_epoch: int) -> int:
        """Optimizer steps in ``time``, which is in this training's unit of time."""
        return round(time) if self.iterations else round(time * steps_per_epoch)

    def data_options(self) -> "DataOptions":
        """Those that say how the data set is read."""
        # here because it loads torch, which a wrong setting need not wait for
        from ..data.options import DataOptions

        given = {entry.name: getattr(self, entry.name) for entry in fields(DataOptions)}
        return DataOptions(**{**given, "scale": tuple(self.scale), "ratio": tuple(self.ratio)})

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "output": str(self.folder)}

    def differences(self, other: "TrainingSettings") -> list[str]:
        """Names of the settings in which a resumed training may not, but does, differ."""
        return [
            entry.name
            for entry in fields(self)
            if entry.name not in FREE_ON_RESUME
            and getattr(self, entry.name) != getattr(other, entry.name)
        ]


def make_settings(values: Mapping[str, Any]) -> TrainingSettings:
    """The settings of a recipe, of ``run.json`` or of keyword arguments.

    Raises UserError for an unknown key, naming near ones, and for a wrong or missing value.
    """
    names = [entry.name for entry in fields(TrainingSettings)]
    for name in values:
        try:
            require_known(
                "setting",
                names,
                name,
                listed="the fields of ran.training.settings.TrainingSettings",
            )
        except ValueError as error:
            raise UserError(str(error)) from None
    for name in ("model", "data"):
        if not values.get(name):
            raise UserError(f"{name}: expected --{name} or a recipe, got neither")
    output = values.get("output")
    path = None if output is None else require_path("output", output)
    return TrainingSettings(**{**values, "output": path})


def resumed(saved: TrainingSettings, given: TrainingSettings) -> TrainingSettings:
    """The settings to continue with: those that were saved, but for what is free to differ.

    So are more epochs. Raises UserError that names a setting that differs and is not free.
    """
    free = {*FREE_ON_RESUME}
    if not saved.iterations and given.epochs > saved.epochs:
        free.add("epochs")
    if different := [name for name in saved.differences(given) if name not in free]:
        name = different[0]
        more = " or more" if name == "epochs" and not saved.iterations else ""
        raise UserError(
            f"{name}: expected {getattr(saved, name)!r}{more}, with which {saved.folder} was "
            f"started, got {getattr(given, name)!r}"
        )
    return replace(saved, **{name: getattr(given, name) for name in free})


def _default_folder(model: str, data: str) -> Path:
    kind, _, path = data.partition(":")
    name = Path(path).resolve().name if path else kind
    return Path("runs") / f"{model}-{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}"
