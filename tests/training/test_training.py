import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

import ran.data.folder
from ran import runs
from ran.callbacks import COLUMNS
from ran.checkpoints import load_network
from ran.classifier import warmup_cosine
from ran.data import load_data
from ran.errors import UserError
from ran.files import read_json
from ran.prediction import class_probabilities
from ran.settings import TrainingSettings
from ran.training import TrainingResult, train

from .helpers import TINY_OPTIONS, make_folder, tiny_settings


def test_a_tiny_network_learns_digits(trained: TrainingResult) -> None:
    assert trained.last["test_accuracy"] > 0.9  # chance is 0.1
    assert trained.last["train_loss"] < trained.rows[0]["train_loss"] / 3


def test_the_folder_holds_what_is_documented(trained: TrainingResult) -> None:
    assert {path.name for path in trained.folder.iterdir()} == runs.RUN_FILES


def test_metrics_csv_has_a_row_for_each_epoch(trained: TrainingResult) -> None:
    with (trained.folder / "metrics.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        rows = [{name: float(value) for name, value in row.items()} for row in reader]
    assert tuple(reader.fieldnames or ()) == COLUMNS
    assert rows == trained.rows
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(row["images_per_second"] > 0 for row in rows)
    rates = [row["learning_rate"] for row in rows]
    assert rates[0] == pytest.approx(0.1, rel=0.05)  # one epoch of warm-up, then a cosine to zero
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 1e-3


def test_the_saved_weights_are_the_best_epochs(trained: TrainingResult) -> None:
    network, card = load_network(trained.folder)
    data = load_data("digits", 16)
    right = 0
    for images, labels in data.test_loader(64):
        found = class_probabilities(network, card.preprocessing, images).argmax(1)
        right += int((found == labels).sum())
    assert right / len(data.test) == pytest.approx(trained.best["test_accuracy"], abs=1e-6)
    assert trained.best["test_accuracy"] == max(row["test_accuracy"] for row in trained.rows)


def test_run_json_says_what_was_asked_for_and_what_came(trained: TrainingResult) -> None:
    run = read_json(trained.folder / "run.json", format="ran-run", version=1)
    assert run["settings"]["model"] == "attention56_cifar_pool"
    assert run["settings"]["epochs"] == 5
    assert run["results"]["last"] == trained.last
    network, _ = load_network(trained.folder)
    assert run["results"]["parameters"] == sum(p.numel() for p in network.parameters())


@pytest.mark.usefixtures("few_digits")
def test_one_seed_gives_the_same_weights_and_another_gives_others(tmp_path: Path) -> None:
    weights = [
        (train(tiny_settings(tmp_path / name, epochs=1, seed=seed)).folder / "model.safetensors")
        for name, seed in (("a", 7), ("b", 7), ("c", 8))
    ]
    first, same, other = [path.read_bytes() for path in weights]
    assert first == same
    assert first != other


@pytest.mark.usefixtures("few_digits")
def test_training_leaves_no_trace_but_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    train(tiny_settings(Path("run"), epochs=1, threads=threads + 1))
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("terminal", [False, True])
def test_progress_tells_the_metrics(
    terminal: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(force_terminal=terminal, width=160)
    result = train(tiny_settings(tmp_path / "run", epochs=2), console)
    shown = capsys.readouterr().out
    assert "96 training and 40 test images" in shown
    assert f"test accuracy {result.last['test_accuracy']:.2%}" in shown
    assert "2/2" in shown


def test_default_folder_is_named_after_model_and_data() -> None:
    settings = TrainingSettings(model="attention56_cifar_pool", data="digits")
    assert settings.folder == Path("runs/attention56_cifar_pool-digits")
    settings = TrainingSettings(model="attention56_cifar_pool", data="folder:/here/my pets/")
    assert settings.folder == Path("runs/attention56_cifar_pool-my_pets")


def test_an_existing_folder_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    for overwrite, reason in ((False, "it exists"), (True, "run.json")):
        with pytest.raises(UserError, match=reason) as caught:
            train(tiny_settings(tmp_path, overwrite=overwrite))
        assert str(tmp_path) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.usefixtures("few_digits")
def test_overwrite_replaces_a_trainings_folder_only_if_nothing_else_is_in_it(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    train(tiny_settings(folder, epochs=1))
    before = (folder / "run.json").read_bytes()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        train(tiny_settings(folder, epochs=2, overwrite=True))
    assert (folder / "run.json").read_bytes() == before
    (folder / "notes.txt").unlink()
    result = train(tiny_settings(folder, epochs=2, overwrite=True))
    assert len(result.rows) == 2
    assert {path.name for path in folder.iterdir()} < runs.RUN_FILES


@pytest.mark.parametrize("augmentation", ["auto", "scale-flip"])
def test_training_on_a_folder_of_images(tmp_path: Path, augmentation: str) -> None:
    data = make_folder(tmp_path / "pets")
    settings = tiny_settings(
        tmp_path / "run",
        data=f"folder:{data}",
        epochs=1,
        batch_size=4,
        augmentation=augmentation,
    )
    result = train(settings)
    network, card = load_network(result.folder)
    assert card.class_names == ("cat", "dog")
    assert network(torch.zeros(1, 3, 16, 16)).shape == (1, 2)


def test_fewer_images_than_a_batch_still_train(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "pets")
    settings = tiny_settings(tmp_path / "run", data=f"folder:{data}", epochs=1, batch_size=64)
    assert train(settings).last["learning_rate"] > 0


def test_an_image_damaged_during_training_is_named_and_no_folder_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_folder(tmp_path / "pets")
    damaged = data / "train" / "dog" / "2.png"
    damaged.write_bytes(b"no image")
    monkeypatch.setattr(ran.data.folder, "check_images", lambda paths: False)
    with pytest.raises(UserError) as caught:
        train(tiny_settings(tmp_path / "run", data=f"folder:{data}", epochs=1, batch_size=4))
    assert str(caught.value).startswith(f"{damaged}: expected a readable image")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("epoch", [1, 2])
def test_sigterm_stops_with_its_code_and_keeps_whole_epochs(
    epoch: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    steps = []

    def stop(images: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 3 * epoch - 1:  # the second of an epoch's three
            os.kill(os.getpid(), signal.SIGTERM)
        return images

    monkeypatch.setitem(ran.data.AUGMENTATIONS, "none", (stop, False))
    with pytest.raises(SystemExit) as caught:
        train(tiny_settings(tmp_path / "run", epochs=3), Console())
    assert caught.value.code == 128 + signal.SIGTERM
    assert f"stopped after {epoch - 1} of 3 epochs" in capsys.readouterr().out
    if epoch == 1:
        assert not (tmp_path / "run").exists()
    else:
        load_network(tmp_path / "run" / "last.ckpt")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epochs": 0}, "epochs: expected a positive integer, got 0"),
        ({"batch_size": -1}, "batch_size: expected a positive integer, got -1"),
        ({"image_size": 0}, "image_size: expected a positive integer, got 0"),
        ({"threads": 0}, "threads: expected a positive integer, got 0"),
        ({"lr": 0.0}, "lr: expected a positive number, got 0.0"),
        ({"lr": float("nan")}, "lr: expected a positive number, got nan"),
        ({"seed": -1}, "seed: expected 0 to"),
        ({"momentum": 1.0}, "momentum: expected 0 or more and less than 1, got 1.0"),
        ({"label_smoothing": 1.0}, "label_smoothing: expected 0 or more and less than 1"),
        ({"weight_decay": -1.0}, "weight_decay: expected 0 or more, got -1.0"),
        ({"warmup_epochs": 101.0}, "warmup_epochs: expected 0 to epochs (100), got 101.0"),
        ({"model": "attention65"}, "attention56"),
        ({"model_options": {**TINY_OPTIONS, "depth": 3}}, "depth"),
        ({"model_options": {**TINY_OPTIONS, "in_chans": 3}}, "in_chans"),
        ({"model_options": {**TINY_OPTIONS, "features_only": True}}, "features_only"),
        ({"model_options": {"widths": {1}}}, "JSON"),
        ({"data": "digit"}, "data: expected digits or folder:PATH, got 'digit'"),
        ({"data": "folder:"}, "data: expected digits or folder:PATH, got 'folder:'"),
        ({"augmentation": "much"}, "augmentation: expected one of auto, none"),
        ({"augmentation": "scale-flip"}, "augmentation: digits takes"),
        ({"device": "tpu"}, "device: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        ({"device": "cuda:99"}, "device: expected one of"),
        ({"precision": "8"}, "precision: expected auto, 32"),
        ({"precision": "16-mixed"}, "precision: 16-mixed needs a CUDA device"),
        ({"image_size": 2}, "image size 2"),
    ],
)
def test_bad_settings_are_named_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object], expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        train(tiny_settings(tmp_path / "run", **changes))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_learning_rate_rises_on_a_line_and_falls_on_a_cosine() -> None:
    shares = [warmup_cosine(step, warmup=3, steps=11) for step in range(11)]
    assert shares[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert shares[7] == pytest.approx(0.5)
    assert shares[10] == pytest.approx(0.0380602)
    assert warmup_cosine(0, warmup=0, steps=1) == 1.0


@pytest.mark.usefixtures("few_digits")
def test_bfloat16_trains_on_the_cpu(tmp_path: Path) -> None:
    result = train(tiny_settings(tmp_path / "run", epochs=1, precision="bf16-mixed"))
    network, _ = load_network(result.folder)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


@pytest.mark.gpu
def test_training_on_a_gpu(tmp_path: Path) -> None:
    result = train(tiny_settings(tmp_path / "run", epochs=5, device="auto"))
    assert result.last["test_accuracy"] > 0.9


def test_importing_the_networks_does_not_load_the_engine() -> None:
    code = "import sys, ran; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
