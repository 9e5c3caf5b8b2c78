"""A loss or weights that are no numbers stop a training before they are saved."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

import ran
import ran.training.run
from ran.errors import UserError

from .everything import EVERYTHING

pytestmark = pytest.mark.usefixtures("no_pictures")


class Poison(L.Callback):
    """Makes a weight NaN after a step, or the images of the next one."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            batch[0].fill_(float("nan"))


@pytest.mark.parametrize(("step", "accumulate"), [(0, 1), (6, 1), (6, 2)])
def test_a_loss_that_is_no_number_stops_with_step_and_rate_and_keeps_the_last_checkpoint(
    step: int, accumulate: int, pets: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    settings = {**EVERYTHING, "data": f"folder:{pets}", "output": folder, "accumulate": accumulate}
    with pytest.raises(UserError) as caught:
        ran.train(**settings, callbacks=[Poison(step)])
    rate = 0.1 * (1 / 5 if step == 0 else 0.9619397662556434)  # of a rise of 4 steps; a cosine
    assert str(caught.value).startswith(
        f"loss: not a finite number at step {step + 1}, learning rate {rate:.4g}"
    )
    if step == 0:
        assert not folder.exists()  # nothing was worth keeping
        return
    saved = torch.load(folder / "last.ckpt", weights_only=True)
    assert saved["global_step"] == step
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_weights_that_are_no_numbers_are_never_saved(pets: Path, tmp_path: Path) -> None:
    class PoisonWeights(L.Callback):
        def on_train_batch_end(
            self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any
        ) -> None:
            if trainer.global_step == 3:
                next(pl_module.parameters()).data.fill_(float("inf"))

    folder = tmp_path / "run"
    settings = {**EVERYTHING, "data": f"folder:{pets}", "output": folder}
    with pytest.raises(UserError, match="weights: not finite numbers after step 3, learning rate"):
        ran.train(**settings, callbacks=[PoisonWeights()])
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 2
