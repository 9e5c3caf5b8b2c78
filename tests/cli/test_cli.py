import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from ran.cli import app
from ran.data import load_data
from ran.training.recipes import list_recipes, load_recipe
from ran.training.settings import TrainingSettings, make_settings
from tests.tiny import TINY, TINY_OPTIONS, make_folder, random_image

TINY_ARGUMENTS = [
    *("--model", TINY["model"], "--data", "digits", "--set", "image_size=16", "--threads", "1"),
    *("--batch-size", "32", "--device", "cpu", "--set", "augmentation=none"),
    *(f"--set=model_options.{key}={value}" for key, value in TINY_OPTIONS.items()),
]


def ran(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The folder of a training from the command line, for reading only, and what was printed."""
    folder: Path = tmp_path_factory.mktemp("cli") / "run"
    return folder, ran("train", *TINY_ARGUMENTS, "--epochs", 3, "--output", folder)


def test_train_prints_a_table_and_what_it_wrote(run: tuple[Path, Result]) -> None:
    folder, result = run
    assert result.exit_code == 0
    assert "epoch 3/3" in result.stdout
    for word in ("best", "last", "test accuracy", "metrics.csv", "masks.png", "model.safetensors"):
        assert word in result.stdout
    assert (folder / "model.safetensors").is_file()
    assert result.stderr == ""


def test_predict_prints_classes_and_probabilities(run: tuple[Path, Result], tmp_path: Path) -> None:
    images, _ = load_data("digits", 8).test.__getitems__(range(2))
    paths = []
    for number, image in enumerate(images):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(image[0].numpy()).save(paths[-1])
    result = ran("predict", run[0], *paths, "--topk", 10)
    assert result.exit_code == 0
    rows = [line for line in result.stdout.splitlines() if "%" in line]
    assert len(rows) == 20
    for digit in range(10):
        assert sum(f"│ {digit} " in row for row in rows) == 2
    shares = [float(row.split("│")[3].strip().removesuffix("%")) for row in rows]
    assert shares[:10] == sorted(shares[:10], reverse=True)
    assert sum(shares[:10]) == pytest.approx(100, abs=0.1)


def test_masks_draws_a_picture(run: tuple[Path, Result], tmp_path: Path) -> None:
    random_image((20, 20), 0).save(tmp_path / "a.png")
    output = tmp_path / "out.png"
    result = ran("masks", run[0] / "model.safetensors", tmp_path / "a.png", "-o", output)
    assert result.exit_code == 0
    assert str(output) in result.stdout.replace("\n", "")
    with Image.open(output) as picture:
        assert picture.width > 300


def refused(result: Result, *expected: str) -> None:
    """One line on stderr that holds all of ``expected``, nothing else, exit code 2."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    for text in expected:
        assert text in result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "attention56_cifar_pol"], ["attention56_cifar_pol", "attention56_cifar_pool"]),
        (["--data", "folder:/nowhere/at/all"], ["/nowhere/at/all", "expected a folder"]),
        (["--data", "cifar"], ["'cifar'", "digits, cifar10:PATH"]),
        (["--data", "cifar10:/nowhere"], ["/nowhere/cifar-10-batches-py", "--download"]),
        (["--device", "abacus"], ["'abacus'", "cuda:N"]),
        (["--precision", "half"], ["'half'", "bf16-mixed"]),
        (["--epochs", "0"], ["epochs", "got 0"]),
        (["--epochs", "-3"], ["epochs", "got -3"]),
        (["--batch-size", "0"], ["batch_size", "got 0"]),
        (["--lr", "-0.1"], ["lr", "got -0.1"]),
        (["--lr", "0"], ["lr", "got 0.0"]),
        (["--set", "depth"], ["KEY=VALUE", "'depth'"]),
        (["--set", "=3"], ["KEY=VALUE", "'=3'"]),
        (["--set", "depth="], ["KEY=VALUE", "'depth='"]),
        (["--set", "depth=3"], ["'depth'", "TrainingSettings"]),
        (["--set", "lr=fast"], ["lr", "expected a number", "'fast'"]),
        (["--set", "model_options.depth=3"], ["depth"]),
        (["--set", "model_options.activation=soft"], ["activation", "'soft'"]),
        (["--set", "image_size=1"], ["image size 1"]),
        (["no-such-recipe"], ["'no-such-recipe'", "digits"]),
        (["--resume", "--overwrite"], ["resume", "overwrite"]),
    ],
)
def test_bad_training_arguments(tmp_path: Path, arguments: list[str], expected: list[str]) -> None:
    output = tmp_path / "run"
    result = ran("train", *TINY_ARGUMENTS, "--epochs", 1, "--output", output, *arguments)
    refused(result, *expected)
    assert list(tmp_path.iterdir()) == []


def test_bad_data_folders(tmp_path: Path) -> None:
    output = tmp_path / "run"
    data = make_folder(tmp_path / "pets")
    arguments = (*TINY_ARGUMENTS, "--epochs", 1, "--output", output, "--data", f"folder:{data}")
    image = data / "train" / "cat" / "1.png"
    content = image.read_bytes()
    image.write_bytes(content[:100])
    refused(ran("train", *arguments), str(image), "expected a readable image")
    image.write_bytes(content)
    for path in (data / "test" / "cat").iterdir():
        path.unlink()
    refused(ran("train", *arguments), str(data / "test" / "cat"), "has none")
    assert not output.exists()


def test_missing_model_and_data() -> None:
    refused(ran("train"), "--model")
    refused(ran("train", "--model", "attention56"), "--data")


def test_an_existing_output_folder_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for flags in ([], ["--overwrite"]):
        refused(ran("train", *TINY_ARGUMENTS, "--output", tmp_path, *flags), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("flag", ["--resume", "--overwrite", None])
@pytest.mark.parametrize("recipe", ["digits", None])
def test_an_output_that_is_a_file_or_in_one_is_left_as_it_is(
    tmp_path: Path, flag: str | None, recipe: str | None
) -> None:
    (tmp_path / "thesis").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    arguments = [word for word in ("train", recipe, flag) if word]
    if not recipe and flag != "--resume":
        arguments += TINY_ARGUMENTS
    for name, expected in (
        ("thesis", "thesis: expected a folder, it is a file"),
        ("link", "link: expected a folder, it is a link to nothing"),
        ("thesis/run/1", f"expected a folder to make it in, {tmp_path / 'thesis'} is a file"),
    ):
        refused(ran(*arguments, "--output", tmp_path / name), expected)
    assert {path.name for path in tmp_path.iterdir()} == {"thesis", "link"}
    assert (tmp_path / "thesis").read_text() == "mine"


def test_bad_prediction_arguments(run: tuple[Path, Result], tmp_path: Path) -> None:
    image, text = tmp_path / "image.png", tmp_path / "text.png"
    random_image((8, 8), 0).save(image)
    text.write_text("no image")
    refused(ran("predict", tmp_path / "no", image), str(tmp_path / "no"), "expected a checkpoint")
    refused(ran("predict", run[0], image, text), str(text), "expected a readable image")
    refused(ran("predict", run[0], tmp_path / "no.png"), str(tmp_path / "no.png"))
    refused(ran("predict", run[0], image, "--topk", 0), "topk", "got 0")
    refused(ran("predict", run[0], image, "--device", "abacus"), "'abacus'")
    refused(ran("predict", image, image), f"{image}: expected a folder, a .safetensors")


def test_a_checkpoint_of_another_network(run: tuple[Path, Result], tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    random_image((8, 8), 0).save(image)
    for name in ("model.safetensors", "model.json"):
        (tmp_path / name).write_bytes((run[0] / name).read_bytes())
    card = tmp_path / "model.json"
    card.write_text(card.read_text().replace("_pool", "_wide"))
    expected = "expected the tensors of attention56_cifar_wide, got another network's"
    refused(ran("predict", tmp_path, image), str(tmp_path / "model.safetensors"), expected)


def test_bad_masks_output(run: tuple[Path, Result], tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    random_image((8, 8), 0).save(image)
    before = image.read_bytes()
    refused(ran("masks", run[0], image, "-o", image), str(image), "it exists")
    assert image.read_bytes() == before


def test_the_program_ends_with_code_2_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ran", "predict", str(tmp_path / "no"), "x.png"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == (f"ran: {tmp_path / 'no'}: expected a checkpoint, found no file there\n")


def test_wrong_usage_ends_with_code_2() -> None:
    assert ran("train", "--epochs", "many").exit_code == 2
    assert ran("paint").exit_code == 2


def test_options_reach_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[TrainingSettings] = []

    class StopError(Exception):
        pass

    def stop(settings: TrainingSettings, console: object) -> None:
        seen.append(settings)
        raise StopError

    monkeypatch.setattr("ran.training.run.train", stop)
    result = ran(
        *("train", "digits", "--epochs", 7, "--lr", 0.5, "--output", tmp_path, "--seed", 3),
        *("--set", "model_options.residual=false", "--set", "seed=4", "--skip-unreadable"),
    )
    assert isinstance(result.exception, StopError)
    recipe = load_recipe("digits").settings
    options = {**recipe["model_options"], "residual": False}
    changes = {"epochs": 7, "lr": 0.5, "output": tmp_path, "seed": 4, "skip_unreadable": True}
    changes["warmup"] = recipe["warmup"] * 7 / recipe["epochs"]  # keeps its share of the training
    assert seen == [make_settings({**recipe, **changes, "model_options": options})]


def test_recipes_are_listed_with_their_sources_and_settings() -> None:
    result = ran("train", "--list")
    assert result.exit_code == 0
    for name in list_recipes():
        assert name in result.stdout
    assert "Woo et al." in result.stdout
    result = ran("train", "cifar-paper", "--list")
    assert "iterations = 160000" in result.stdout
    assert "arXiv 1704.06904" in result.stdout


def test_a_training_resumes_from_its_folder_alone(run: tuple[Path, Result], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    result = ran("train", "--resume", "--output", folder)
    assert result.exit_code == 0, result.output
    assert f"going on from {folder / 'last.ckpt'}" in result.stdout
    weights = [(each / "model.safetensors").read_bytes() for each in (run[0], folder)]
    assert weights[0] == weights[1]
    refused(ran("train", "--resume", "--output", folder, "--lr", 0.2), "lr: expected 0.1")
    refused(ran("train", "--resume", "--output", tmp_path / "no"), str(tmp_path / "no"))
