import csv
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import ran.data.folder
from ran.data import load_data
from ran.errors import UserError
from ran.files import read_json
from ran.pictures.masks import plot_masks
from ran.training import runs
from ran.training.callbacks import COLUMNS
from ran.training.recipes import load_recipe
from ran.training.run import TrainingResult, train
from ran.training.settings import TrainingSettings
from ran.weights.inference import class_probabilities
from ran.weights.network_card import load_network
from tests.tiny import make_folder, tiny_settings


def test_a_tiny_network_learns_digits(trained: TrainingResult) -> None:
    assert trained.last["test_accuracy"] > 0.9  # chance is 0.1
    assert trained.last["train_loss"] < trained.rows[0]["train_loss"] / 3


def test_the_folder_holds_what_is_documented(trained: TrainingResult) -> None:
    logs = {runs.LOG_FOLDER} if find_spec("tensorboard") else set()
    found = {path.name for path in trained.folder.iterdir()}
    assert found == runs.RUN_FILES - {runs.LOG_FOLDER} | logs


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
    assert "96 training images and 40 test images" in shown
    assert f"test accuracy {result.last['test_accuracy']:.2%}" in shown
    assert "2/2" in shown


def test_default_folder_is_named_after_model_and_data() -> None:
    settings = TrainingSettings(model="attention56_cifar_pool", data="digits")
    assert settings.folder == Path("runs/attention56_cifar_pool-digits")
    settings = TrainingSettings(model="attention56_cifar_pool", data="folder:/here/my pets/")
    assert settings.folder == Path("runs/attention56_cifar_pool-my_pets")


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
    monkeypatch.setattr(
        ran.data.folder, "check_images", lambda paths, skip: (False, [None] * len(paths))
    )
    settings = tiny_settings(
        tmp_path / "run",
        data=f"folder:{data}",
        epochs=1,
        batch_size=4,
        augmentation="scale-flip",  # reads its files anew in each epoch
    )
    with pytest.raises(UserError) as caught:
        train(settings)
    assert str(caught.value).startswith(f"{damaged}: expected a readable image")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("few_digits")
def test_bfloat16_trains_on_the_cpu(tmp_path: Path) -> None:
    result = train(tiny_settings(tmp_path / "run", epochs=1, precision="bf16-mixed"))
    network, _ = load_network(result.folder)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_float64_trains_to_its_pictures(tmp_path: Path) -> None:
    result = train(tiny_settings(tmp_path / "run", epochs=1, precision="64", batch_size=256))
    assert (result.folder / "masks.png").is_file()
    plot_masks(
        result.folder, [make_folder(tmp_path / "pets") / "test/cat/0.png"], tmp_path / "m.png"
    )


@pytest.mark.gpu
def test_training_on_a_gpu(tmp_path: Path) -> None:
    result = train(tiny_settings(tmp_path / "run", epochs=5, device="auto"))
    assert result.last["test_accuracy"] > 0.9


@pytest.mark.gpu
def test_the_fast_recipes_options_on_a_gpu(tmp_path: Path) -> None:
    names = ("precision", "compile", "channels_last", "ema", "schedule", "label_smoothing")
    options = {name: load_recipe("cifar-fast").settings[name] for name in names}
    settings = tiny_settings(tmp_path / "run", epochs=5, device="auto", **options, cutout=2)
    assert train(settings).last["test_accuracy"] > 0.9


@pytest.mark.gpu
@pytest.mark.usefixtures("few_digits")
def test_a_deterministic_training_on_a_gpu_ends_with_the_same_bits(tmp_path: Path) -> None:
    weights = []
    for name in "ab":
        settings = tiny_settings(tmp_path / name, epochs=2, device="auto", deterministic=True)
        weights.append((train(settings).folder / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_importing_the_networks_does_not_load_the_engine() -> None:
    code = "import sys, ran; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "lr": 1e-3, "decay_all": False},
        {"compile": False, "channels_last": False, "label_smoothing": 0.1},
        {"mixup": 1.0, "label_smoothing": 0.1, "schedule": "linear"},
        {"ema": 0.5, "cutout": 5, "schedule": "multistep", "milestones": [0.5]},
    ],
)
def test_options_train(changes: dict[str, Any], tmp_path: Path) -> None:
    result = train(tiny_settings(tmp_path / "run", epochs=1, **changes))
    assert 0 < result.last["test_loss"] < 4
    assert 0 < result.last["train_loss"] < 4


@pytest.mark.usefixtures("few_digits")
def test_the_moving_average_is_what_is_tested_and_saved(tmp_path: Path) -> None:
    result = train(tiny_settings(tmp_path / "run", epochs=1, ema=0.9))
    state = torch.load(result.folder / "last.ckpt", weights_only=True)["state_dict"]
    saved = load_file(result.folder / "model.safetensors")
    for name, value in saved.items():
        assert torch.equal(value, state[f"network.{name}"])
    assert not torch.equal(state["network.stem.conv.weight"], state["trainee.stem.conv.weight"])


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs tensorboard")
def test_tensorboard_gets_the_curves(trained: TrainingResult) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained.folder / runs.LOG_FOLDER)).Reload()
    assert {"train_loss", "test_loss", "test_accuracy"} <= set(events.Tags()["scalars"])
    found = [event.value for event in events.Scalars("test_accuracy")]
    assert found == pytest.approx([row["test_accuracy"] for row in trained.rows], abs=1e-6)
