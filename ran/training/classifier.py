"""The network in training, as Lightning runs it."""

import json
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3, distribute_bn
from torch import Tensor, nn

from ..data import Batch, ImageData
from ..data.order import seed_all, seed_of
from ..errors import UserError
from ..text import plural
from ..weights.network_card import NetworkCard
from ..weights.saved import CARD_KEY, PROCESSES_KEY
from .schedules import Schedule, make_schedule
from .settings import TrainingSettings

#: Under this key a checkpoint holds the sums of the epoch that it was written in.
SUMS_KEY = "ran_epoch_sums"
#: And under this one how many images there are to train and to test on.
IMAGES_KEY = "ran_images"


class ImageClassifier(L.LightningModule):
    """A network with its loss, optimizer, schedule and moving average.

    Logs ``train_loss`` (what is minimised) every few steps, and after each epoch ``test_loss``
    (plain cross-entropy) and ``test_accuracy`` (a share, 0 to 1), the mean over all test images.

    Every random number of a step is a function of the seed, the step and the process: a resumed
    training draws the same.

    Args:
        network: images (N, C, H, W) to logits (N, classes).
        card: what checkpoints say of the network.
        data: its augmentation and normalisation run here, on the device.
        settings: of the training.
        steps_per_epoch: of the optimizer.

    Attributes:
        network: what is tested, saved and used in the end: with ``settings.ema`` the moving
            average of the weights, otherwise what is trained.
        schedule: the learning rate's.
    """

    def __init__(
        self,
        network: nn.Module,
        card: NetworkCard,
        data: ImageData,
        settings: TrainingSettings,
        steps_per_epoch: int,
    ) -> None:
        super().__init__()
        if settings.channels_last:
            network = network.to(memory_format=torch.channels_last)
        self.network = network
        self._average: tuple[ModelEmaV3, ...] = ()
        if settings.ema:
            average = ModelEmaV3(network, decay=settings.ema, use_warmup=True)
            self.trainee, self.network = network, average.module.requires_grad_(False)
            self._average = (average,)  # in a tuple: its network is registered already
        if settings.compile:
            self._trained.compile()
        self.schedule: Schedule = make_schedule(settings, steps_per_epoch)
        self._mixup = _make_mixup(settings, len(card.class_names))
        until = settings.mix_until
        self._mixed_steps = (
            self.schedule.steps if until is None else settings.steps(until, steps_per_epoch)
        )
        self._card, self._data, self._settings = card, data, settings
        self._batches = 0
        self._train_sums, self._test_sums = _no_sums(), _no_sums()

    @property
    def _trained(self) -> nn.Module:
        return self.trainee if self._average else self.network

    def train_means(self, *, all_processes: bool) -> tuple[float, float]:
        """Loss and accuracy of this epoch's training images so far, of one process or of all.

        Accuracy counts an image as right whose most probable class is its target's greatest.
        """
        sums = self._over_processes(self._train_sums) if all_processes else self._train_sums
        loss, right, images = sums.tolist()
        return loss / max(1, images), right / max(1, images)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def learning_rate(self, step: int) -> float:
        """At ``step`` of the optimizer, counted from 0."""
        return self._settings.lr * self.schedule(step)

    def on_train_start(self) -> None:
        self._batches = self.trainer.global_step * self._settings.accumulate
        self._train_sums = self._train_sums.to(self.device)

    def on_train_epoch_start(self) -> None:
        self._train_sums = _no_sums().to(self.device)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        images, labels = batch
        if not len(labels):
            return batch
        training = self.trainer.training
        if training:
            seed_all(seed_of(self._settings.seed, self._batches, self.global_rank, 1))
            self._batches += 1
            images = self._data.augmentation(images)
        images = self._data.preprocessing.normalize(images).to(self.dtype)
        if not self._settings.channels_last:
            images = images.contiguous()
        if training and self._mixup and self.trainer.global_step < self._mixed_steps:
            images, labels = self._mixup(images, labels)
        return images, labels

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        logits = self._trained(images)
        mixed = targets.ndim == 2  # then label smoothing is in the targets already
        smoothing = 0.0 if mixed else self._settings.label_smoothing
        loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
        labels = targets.argmax(1) if mixed else targets
        self._train_sums += _sums(loss, logits, labels)
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log_dict({"train_loss": loss, "learning_rate": rate}, on_step=True, on_epoch=False)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        for average in self._average:
            average.update(self._trained, step=self.trainer.global_step + 1)

    def on_validation_start(self) -> None:
        self._test_sums = _no_sums().to(self.device)
        if self.trainer.world_size > 1:
            # each process counted its own images into the running statistics; in the same order
            # in all of them, or the statistics of one network would meet those of the other
            for network in dict.fromkeys((self._trained, self.network)):
                distribute_bn(network, self.trainer.world_size, reduce=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        if not len(labels):  # none of its files could be read
            return
        logits = self.network(images)
        self._test_sums += _sums(F.cross_entropy(logits, labels), logits, labels)

    def on_validation_epoch_end(self) -> None:
        loss, right, images = self._over_processes(self._test_sums).tolist()
        if not images:
            raise UserError(f"{self._data.name}: expected test images that can be read, found none")
        self.log_dict({"test_loss": loss / images, "test_accuracy": right / images})

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self._trained, self._settings)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CARD_KEY] = self._card.to_json()
        checkpoint[IMAGES_KEY] = self._images()
        checkpoint[PROCESSES_KEY] = self.trainer.world_size
        # every process reads what one of them saved: the mean, so that their sum stays the same
        sums = self._over_processes(self._train_sums) / self.trainer.world_size
        checkpoint[SUMS_KEY] = sums.tolist()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        found, expected = (
            json.loads(json.dumps(card)) for card in (checkpoint[CARD_KEY], self._card.to_json())
        )
        if found != expected:
            raise UserError(
                "resume: expected a checkpoint of the same network, classes and images, got one of "
                f"{found.get('model')} that differs in "
                + ", ".join(key for key in expected if found.get(key) != expected[key])
            )
        # with other images every epoch would be shuffled otherwise, which nobody asked for
        images = self._images()
        if (then := checkpoint.get(IMAGES_KEY, images)) != images:
            left_out = self._data.unreadable
            why = f"; {left_out.found} unreadable, first {left_out.first}" if left_out.found else ""
            raise UserError(
                f"resume: expected the {plural(then[0], 'training image')} and "
                f"{plural(then[1], 'test image')} of before, {self._data.name} has {images[0]:,} "
                f"and {images[1]:,}{why}"
            )
        self._train_sums = torch.tensor(checkpoint[SUMS_KEY], dtype=torch.float64)
        self._take_over_schedule(checkpoint)

    def _take_over_schedule(self, checkpoint: dict[str, Any]) -> None:
        """Has the settings' schedule go on where it is not the one that the checkpoint holds.

        PyTorch would put the attributes of that one into this, and begin with its rate.
        """
        rate = self.learning_rate(checkpoint["global_step"])
        for state in checkpoint["lr_schedulers"]:
            if all(held == vars(self.schedule) for held in state["lr_lambdas"]):
                continue
            state["lr_lambdas"] = [None] * len(state["lr_lambdas"])
            state["_last_lr"] = [rate] * len(state["_last_lr"])
            for optimizer in checkpoint["optimizer_states"]:
                for group in optimizer["param_groups"]:
                    group["lr"] = rate

    def _images(self) -> list[int]:
        return [len(self._data.train), len(self._data.test)]

    def _over_processes(self, sums: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(sums.clone(), reduce_op="sum")


def make_optimizer(network: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Raises UserError where it cannot be made, for want of a package or of a GPU."""
    try:
        return create_optimizer_v2(
            network,
            opt=settings.optimizer,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            filter_bias_and_bn=not settings.decay_all,
        )
    except Exception as error:  # timm asserts, and every optimizer has checks of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"optimizer: expected one that can be made here, got {settings.optimizer!r}: {reason}"
        ) from None


def _no_sums() -> Tensor:
    # in float64, so that a million images count exactly
    return torch.zeros(3, dtype=torch.float64)


def _sums(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Loss over the images of a batch, those classified right, and all, to be added up."""
    right = (logits.detach().argmax(1) == labels).sum()
    parts = (loss.detach() * len(labels), right, torch.full_like(right, len(labels)))
    return torch.stack([part.double() for part in parts])


def _make_mixup(settings: TrainingSettings, classes: int) -> Mixup | None:
    if not settings.mixup and not settings.cutmix:
        return None
    return Mixup(
        mixup_alpha=settings.mixup,
        cutmix_alpha=settings.cutmix,
        label_smoothing=settings.label_smoothing,
        num_classes=classes,
    )
