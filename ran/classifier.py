"""The network in training, as Lightning runs it."""

import math
from functools import partial
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from .checkpoints import CARD_KEY, NetworkCard
from .data import Batch, ImageData


def warmup_cosine(step: int, *, warmup: int, steps: int) -> float:
    """Share of the peak learning rate at ``step`` of ``steps``: up a line, down a cosine."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class ImageClassifier(L.LightningModule):
    """A network with its loss, optimizer and schedule.

    Logs ``train_loss`` (what is minimised, label smoothing included), ``test_loss`` (plain
    cross-entropy) and ``test_accuracy`` (a share, 0 to 1), each the mean over an epoch's images.

    Args:
        network: images (N, C, H, W) to logits (N, classes).
        card: what checkpoints say of the network.
        data: its augmentation and normalisation run here, on the device.
        lr: learning rate at its peak.
        warmup_epochs: in which the rate rises linearly to that peak; it then falls to zero along
            a cosine.
        momentum: Nesterov's.
        weight_decay: of every parameter.
        label_smoothing: share of the target that is spread over all classes.
    """

    def __init__(
        self,
        network: nn.Module,
        card: NetworkCard,
        data: ImageData,
        *,
        lr: float,
        warmup_epochs: float,
        momentum: float,
        weight_decay: float,
        label_smoothing: float,
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self._accuracy = MulticlassAccuracy(len(card.class_names), average="micro")
        self._card = card
        self._data = data
        self._lr = lr
        self._warmup_epochs = warmup_epochs
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._label_smoothing = label_smoothing

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        images, labels = batch
        if self.trainer.training:
            images = self._data.augmentation(images)
        return self._data.preprocessing.normalize(images).to(self.dtype), labels

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels, label_smoothing=self._label_smoothing)
        self._log_mean("train_loss", loss, len(labels))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        # a metric that counts: means of batches differ in the last bit between equal epochs
        self._accuracy.update(logits, labels)
        self._log_mean("test_loss", F.cross_entropy(logits, labels), len(labels))
        self.log("test_accuracy", self._accuracy)

    def configure_optimizers(self) -> Any:
        optimizer = create_optimizer_v2(
            self.network,
            opt="sgd",  # timm's "sgd" is Nesterov's
            lr=self._lr,
            momentum=self._momentum,
            weight_decay=self._weight_decay,
            filter_bias_and_bn=False,
        )
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = round(steps * self._warmup_epochs / (self.trainer.max_epochs or 1))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, partial(warmup_cosine, warmup=warmup, steps=steps)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CARD_KEY] = self._card.to_json()

    def _log_mean(self, name: str, value: Tensor, count: int) -> None:
        self.log(name, value, on_step=False, on_epoch=True, batch_size=count, sync_dist=True)
