"""Checkpoints that a training keeps of single epochs."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from ran.errors import UserError
from ran.pictures.masks import plot_masks
from ran.training.run import train
from ran.training.runs import check_folder
from ran.weights.network_card import kept_checkpoints, load_network
from tests.tiny import random_image, tiny_settings


@pytest.mark.usefixtures("few_digits")
def test_epochs_are_kept_and_can_be_animated(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(tiny_settings(folder, epochs=5, keep_every=2))
    kept = kept_checkpoints(folder)
    assert [path.name for path in kept] == ["epoch-0002.ckpt", "epoch-0004.ckpt"]
    weights = [next(load_network(path)[0].parameters()) for path in (*kept, folder / "last.ckpt")]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])

    random_image((16, 16), 0, "L").save(tmp_path / "a.png")
    plot_masks(folder, tmp_path / "a.png", tmp_path / "masks.gif")
    with Image.open(tmp_path / "masks.gif") as animation:
        assert animation.n_frames == 2
    plot_masks(folder, tmp_path / "a.png", tmp_path / "masks.png")  # of the best epoch

    check_folder(folder, overwrite=True)
    (folder / "epoch-best.ckpt").write_text("mine")
    with pytest.raises(UserError, match=r"it holds epoch-best\.ckpt"):
        check_folder(folder, overwrite=True)


def test_kept_checkpoints_are_in_the_order_of_their_epochs(tmp_path: Path) -> None:
    for name in ("epoch-10000.ckpt", "epoch-0200.ckpt", "epoch-9999.ckpt", "epoch-1.ckpt"):
        (tmp_path / name).write_text("")
    names = [path.name for path in kept_checkpoints(tmp_path)]
    assert names == ["epoch-0200.ckpt", "epoch-9999.ckpt", "epoch-10000.ckpt"]
