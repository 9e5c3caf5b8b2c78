"""Settings, schedules and recipes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ran.errors import UserError
from ran.training.recipes import combine, list_recipes, load_recipe, parse_overrides
from ran.training.run import train
from ran.training.schedules import Schedule, make_schedule
from ran.training.settings import make_settings
from tests.tiny import TINY_OPTIONS, tiny_settings

#: Holds itself.
ENDLESS: dict[str, Any] = {}
ENDLESS["itself"] = ENDLESS


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epochs": 0}, "epochs: expected 1 to 1,000,000,000, got 0"),
        ({"epochs": 1.5}, "epochs: expected an integer, got 1.5"),
        ({"epochs": True}, "epochs: expected an integer, got True"),
        ({"iterations": 0}, "iterations: expected 1 to 1,000,000,000, got 0"),
        ({"batch_size": -1}, "batch_size: expected 1 to 1,000,000,000, got -1"),
        ({"accumulate": 3}, "batch_size: expected a multiple of 3 (processes × parts), got 32"),
        ({"batch_size": 7, "mixup": 1.0}, "batch_size: mixup and cutmix need an even number"),
        ({"keep_every": -1}, "keep_every: expected 0 to 1,000,000,000, got -1"),
        ({"image_size": 0}, "image_size: expected 1 to 8192 pixels, got 0"),
        ({"threads": 0}, "threads: expected 1 to 1,024, got 0"),
        ({"lr": 0.0}, "lr: expected more than 0 and at most 10,000, got 0.0"),
        ({"lr": float("nan")}, "lr: expected more than 0 and at most 10,000, got nan"),
        ({"lr": "fast"}, "lr: expected a number, got 'fast'"),
        ({"compile": 1}, "compile: expected true or false, got 1"),
        ({"seed": -1}, "seed: expected 0 to 4,294,967,295, got -1"),
        ({"momentum": 1.0}, "momentum: expected at least 0 and less than 1, got 1.0"),
        ({"ema": 1.0}, "ema: expected at least 0 and less than 1, got 1.0"),
        ({"label_smoothing": 1.0}, "label_smoothing: expected at least 0 and less than 1"),
        ({"weight_decay": -1.0}, "weight_decay: expected 0 to 10,000, got -1.0"),
        ({"warmup": 101.0}, "warmup: expected 0 to epochs (100), got 101.0"),
        ({"iterations": 9, "mix_until": 10}, "mix_until: expected 0 to iterations (9), got 10"),
        ({"schedule": "steps"}, "schedule: expected one of cosine, linear, multistep"),
        ({"schedule": "multistep"}, "milestones: expected some if and only if"),
        ({"milestones": [3]}, "milestones: expected some if and only if"),
        ({"schedule": "multistep", "milestones": [3, 2]}, "milestones: expected rising times"),
        ({"schedule": "multistep", "milestones": [100]}, "milestones: expected rising times"),
        ({"milestones": "30"}, "milestones: expected a list of numbers, got '30'"),
        ({"scale": [0.5]}, "scale: expected [least, greatest], got [0.5]"),
        (
            {"scale": [0.5, 1.5]},
            "scale: expected numbers of more than 0 and at most 1, got [0.5, 1.5]",
        ),
        ({"ratio": [1.5, 0.5]}, "ratio: expected [least, greatest], got [1.5, 0.5]"),
        ({"threads": 3000}, "threads: expected 1 to 1,024, got 3000"),
        ({"workers": 100_000}, "workers: expected 0 to 256, got 100000"),
        ({"image_size": 100_000}, "image_size: expected 1 to 8192 pixels, got 100000"),
        ({"lr": 1e308}, "lr: expected more than 0 and at most 10,000, got 1e+308"),
        ({"lr": 10**400}, "lr: expected more than 0 and at most 10,000, got 1000"),
        ({"lr": 10**5000}, "lr: expected more than 0 and at most 10,000, got one of type int"),
        ({"weight_decay": 1e300}, "weight_decay: expected 0 to 10,000, got 1e+300"),
        ({"mixup": 1e300}, "mixup: expected 0 to 1,000, got 1e+300"),
        ({"ratio": [1e-300, 1]}, "ratio: expected numbers of 0.01 to 100, got [1e-300, 1]"),
        ({"milestones": [0.5] * 10**5}, "…"),
        ({"output": 3.5}, "output: expected a path, got 3.5"),
        ({"output": Path("a" * 300)}, "expected a folder: File name too long"),
        ({"data": "folder:a\0b"}, r"data: expected text without a NUL, got 'folder:a\x00b'"),
        ({"model": "m" * 10**6}, "model: expected at most 4096 characters, got 1000000: 'mmm"),
        ({"model_options": ENDLESS}, "model_options: expected what JSON can hold"),
        (
            {"model_options": {**TINY_OPTIONS, "stem_width": 10**12}},
            "model attention56_cifar_pool: stem_width: expected an integer of at least 1 and at mo",
        ),
        ({"optimizer": "sdg"}, "optimizer: expected one of timm.optim.list_optimizers()"),
        ({"optimizer": "sdg"}, "did you mean 'sgd'"),
        ({"sync_bn": True}, "sync_bn: expected GPUs"),
        ({"model": "attention65"}, "attention56"),
        ({"model_options": {**TINY_OPTIONS, "depth": 3}}, "depth"),
        ({"model_options": {**TINY_OPTIONS, "in_chans": 3}}, "in_chans"),
        ({"model_options": {**TINY_OPTIONS, "features_only": True}}, "features_only"),
        ({"model_options": {"widths": {1}}}, "JSON"),
        ({"data": "digit"}, "data: expected digits, cifar10:PATH"),
        ({"data": "folder:"}, "data: expected digits, cifar10:PATH"),
        ({"data": "gfds/beans"}, "data: expected a reader of hfds, hfids, wds, tfds"),
        ({"augmentation": "much"}, "augmentation: expected one of auto, none"),
        ({"augmentation": "scale-flip"}, "augmentation: digits takes"),
        ({"device": "tpu"}, "device: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        ({"device": "cuda:99"}, "device: expected one of"),
        ({"precision": "8"}, "precision: expected auto, 32"),
        ({"precision": "16-mixed"}, "precision: 16-mixed needs a CUDA device"),
        ({"image_size": 2}, "image size 2"),
        ({"optimizer": "adahessian"}, "optimizer: expected one of first derivatives"),
        pytest.param(
            {"optimizer": "bnbadam"},
            "optimizer: expected one that can be made here, got 'bnbadam': ",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may make it"),
        ),
        (
            {"model": "cbam_resnet18", "model_options": {}, "image_size": 32}
            | {"batch_size": 2, "accumulate": 2},
            "model cbam_resnet18 at image size 32, one image at once (batch_size over accumulate)",
        ),
    ],
)
def test_bad_settings_are_named_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        train(tiny_settings(**{"output": tmp_path / "run", **changes}))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["load_data", "check_runs"])
def test_what_no_memory_holds_is_named_before_anything_is_written(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: Any) -> None:
        torch.empty(1 << 50, dtype=torch.uint8)

    monkeypatch.setattr(f"ran.training.run.{what}", ask)
    expected = (
        r"^model attention56_cifar_pool at image size 16: expected one that fits this m[^\n]*$"
    )
    with pytest.raises(UserError, match=expected):
        train(tiny_settings(tmp_path / "run", image_size=16))
    assert list(tmp_path.iterdir()) == []


def test_unknown_and_missing_settings_are_named() -> None:
    with pytest.raises(UserError, match="did you mean 'momentum'"):
        make_settings({"model": "attention56", "data": "digits", "momentun": 0.5})
    with pytest.raises(UserError, match="model: expected --model or a recipe, got neither"):
        make_settings({"data": "digits"})


def test_settings_survive_their_file() -> None:
    settings = tiny_settings(Path("a/b"), milestones=[3, 4.5], schedule="multistep", epochs=9)
    assert make_settings(settings.to_json()) == settings


def test_a_crop_may_be_any_shape_but_no_larger_than_the_image() -> None:
    settings = tiny_settings(Path("x"), scale=[1.0, 1.0], ratio=[0.5, 3.0])
    assert (settings.scale, settings.ratio) == ([1.0, 1.0], [0.5, 3.0])


def rates(schedule: Schedule) -> list[float]:
    return [schedule(step) for step in range(schedule.steps)]


def test_cosine_rises_on_a_line_and_falls_to_zero() -> None:
    shares = rates(Schedule("cosine", 11, warmup=3))
    assert shares[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert shares[7] == pytest.approx(0.5)
    assert shares[10] == pytest.approx(0.0380602)
    assert rates(Schedule("cosine", 1)) == [1.0]


def test_linear_falls_on_a_line() -> None:
    assert rates(Schedule("linear", 5, warmup=1)) == pytest.approx([0.5, 1, 0.75, 0.5, 0.25])


def test_multistep_falls_at_its_milestones_and_constant_does_not() -> None:
    shares = rates(Schedule("multistep", 6, milestones=(2, 5)))
    assert shares == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01])
    assert rates(Schedule("constant", 3)) == [1, 1, 1]


@pytest.mark.parametrize("name", list_recipes())
def test_recipes_are_valid_and_say_their_source(name: str) -> None:
    recipe = load_recipe(name)
    settings = make_settings(recipe.settings)
    assert recipe.about
    assert recipe.source
    make_schedule(settings, 100)


def published(name: str, steps_per_epoch: int) -> Schedule:
    return make_schedule(make_settings(load_recipe(name).settings), steps_per_epoch)


def test_published_schedules() -> None:
    """Steps of the papers, and of 50,000 / 64 and 1,281,167 / 256 images in an epoch."""
    assert (published("cifar-paper", 781).steps, published("imagenet-ran", 20018).steps) == (
        160_000,
        530_000,
    )
    paper = published("cifar-paper", 781)
    assert [paper(step) for step in (0, 63_999, 64_000, 96_000)] == pytest.approx([1, 1, 0.1, 0.01])
    assert published("imagenet-ran", 20018).milestones == (200_000, 400_000, 500_000)
    mixup = published("cifar-mixup", 781)
    assert mixup.steps == 320 * 781
    assert [step / mixup.steps for step in mixup.milestones] == pytest.approx([0.3, 0.6, 0.9])
    cbam = published("imagenet-cbam", 5004)
    settings = make_settings(load_recipe("imagenet-cbam").settings)
    assert (settings.optimizer, settings.color_jitter) == ("momentum", 0)  # no Nesterov
    assert (cbam.steps, cbam.milestones) == (90 * 5004, (30 * 5004, 60 * 5004))


def test_overrides_are_written_as_in_a_recipe_or_in_python() -> None:
    lines = ["lr=0.5", "milestones = [1, 2.5]", "compile=true", "sync_bn=False", "threads=None"]
    lines += ["auto_augment=rand-m9", 'data="folder:a=b"', "model_options.widths=[8]"]
    lines += ["model_options.residual=False", "model_options.activation=channel"]
    assert parse_overrides(lines) == {
        "lr": 0.5,
        "milestones": [1, 2.5],
        "compile": True,
        "sync_bn": False,
        "threads": None,
        "auto_augment": "rand-m9",
        "data": "folder:a=b",
        "model_options": {"widths": [8], "residual": False, "activation": "channel"},
    }


@pytest.mark.parametrize("line", ["lr", "=3", "lr=", "a b=3", "lr.=3", ".lr=3"])
def test_overrides_that_are_none_are_refused(line: str) -> None:
    with pytest.raises(UserError, match="set: expected KEY=VALUE"):
        parse_overrides([line])


@pytest.mark.parametrize(
    "value",
    [
        *("[" * 100_000, "[" * 300 + "]" * 300, "[1," * 2000, "{" * 3000, "-" * 50_000 + "1"),
        *(
            "9" * 5000,
            "0x" + "f" * 5000,
            "1e308",
            "1e400",
            "nan",
            "[1, 2]",
            "1979-05-27",
            "{a = 1}",
        ),
    ],
)
def test_no_value_is_more_than_a_line(value: str) -> None:
    for name in ("lr", "threads", "milestones"):
        with pytest.raises(UserError) as caught:
            make_settings(combine("digits", parse_overrides([f"{name}={value}"])))
        assert str(caught.value).startswith(f"{name}: expected ")
        assert len(str(caught.value)) < 200
        assert "\n" not in str(caught.value)


def test_changes_win_over_the_recipe_key_by_key() -> None:
    recipe = load_recipe("digits").settings
    change: dict[str, Any] = {"lr": 0.5, "model_options": {"residual": False}}
    found = combine("digits", {"lr": 0.3, "seed": 2}, change)
    options = {**recipe["model_options"], "residual": False}
    assert found == {**recipe, "lr": 0.5, "seed": 2, "model_options": options}
    assert "iterations" not in combine("cifar-paper", {"epochs": 3})
    assert combine(None, {"epochs": 3}) == {"epochs": 3}


@pytest.mark.parametrize("change", [{"epochs": 10}, {"iterations": 10}])
@pytest.mark.parametrize("name", list_recipes())
def test_a_shorter_recipe_keeps_its_shape(name: str, change: dict[str, Any]) -> None:
    """As in the README: ``--set epochs=10`` must not ask for every milestone too."""
    whole = make_settings(load_recipe(name).settings)
    short = make_settings(combine(name, change))
    share = 10 / (whole.iterations or whole.epochs)
    assert short.milestones == pytest.approx([time * share for time in whole.milestones])
    assert short.warmup == pytest.approx(whole.warmup * share)
    if whole.mix_until is not None:
        assert short.mix_until == pytest.approx(whole.mix_until * share)


def test_times_that_are_given_are_not_scaled() -> None:
    change = {"epochs": 10, "milestones": [4, 9], "mix_until": 8}
    found = combine("cifar-mixup", change)
    assert (found["milestones"], found["mix_until"]) == ([4, 9], 8)
    with pytest.raises(UserError, match="epochs: expected an integer"):
        make_settings(combine("cifar-mixup", {"epochs": "ten"}))
