"""Networks saved and loaded whole: folders, repositories, and what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models._features import FeatureGetterNet
from torch import nn

import ran
from ran.data import Preprocessing
from ran.errors import UserError
from tests.models.helpers import randomise

#: One stage with one attention module.
TINY: dict[str, Any] = {
    "modules": (1,),
    "widths": (16,),
    "strides": (1,),
    "mask_depths": (1,),
    "stem_width": 8,
    "tail_units": 0,
}
TINY_CBAM: dict[str, Any] = {"layers": (1,) * 4, "channels": (16, 16, 32, 32), "reduction": 4}
IMAGES = Preprocessing(32, 0.875, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


def tiny(**options: Any) -> Any:
    return ran.create_model("attention56_cifar", **{"num_classes": 3, **TINY, **options})


def tiny_cbam(**options: Any) -> Any:
    return ran.create_model("cbam_resnet18", **{"num_classes": 3, **TINY_CBAM, **options})


def assert_same(got: nn.Module, expected: nn.Module, channels: int = 3) -> None:
    """Equal tensors, of equal dtypes, that give equal outputs."""
    torch.testing.assert_close(got.state_dict(), expected.state_dict(), rtol=0, atol=0)
    x = torch.randn(2, channels, 32, 32)
    torch.testing.assert_close(got(x), expected.eval()(x), rtol=0, atol=0)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    ran.save_pretrained(tiny(), tmp_path)
    return tmp_path


@pytest.mark.parametrize("make", [tiny, tiny_cbam])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"in_chans": 1, "drop_rate": 0.25},
        {"num_classes": 0, "global_pool": ""},
        {"features_only": True},
        {"features_only": True, "out_indices": (0, 1), "in_chans": 1},
    ],
    ids=str,
)
def test_a_network_comes_back(make: Any, options: dict[str, Any], tmp_path: Path) -> None:
    model = randomise(make(**options))
    ran.save_pretrained(model, tmp_path / "new" / "folder")
    loaded: Any = ran.from_pretrained(tmp_path / "new" / "folder")
    assert type(loaded) is type(model)
    assert not any(module.training for module in loaded.modules())
    assert all(p.requires_grad and not p.is_meta for p in loaded.parameters())
    assert_same(loaded, model, options.get("in_chans", 3))
    if not options.get("features_only"):
        assert (loaded.num_classes, loaded.in_chans) == (model.num_classes, model.in_chans)
        assert loaded.drop_rate == model.drop_rate


def test_options_are_those_of_the_making(tmp_path: Path) -> None:
    widths = [16]
    model = tiny(widths=widths, features_only=None, cache_dir="somewhere")
    widths[0] = 32
    ran.save_pretrained(model, tmp_path)
    options = json.loads((tmp_path / "model.json").read_text())["options"]
    assert options == json.loads(json.dumps(TINY))


@pytest.mark.parametrize("make", [tiny, tiny_cbam])
@pytest.mark.parametrize("head", [(5, None), (0, None), (0, ""), (5, "avg")])
def test_a_replaced_classifier_comes_back(
    make: Any, head: tuple[int, str | None], tmp_path: Path
) -> None:
    model = make(global_pool="", num_classes=0) if head == (5, "avg") else make()
    model.reset_classifier(*head)
    ran.save_pretrained(model, tmp_path)
    loaded: Any = ran.from_pretrained(tmp_path)
    assert loaded.num_classes == head[0]
    assert_same(loaded, model)


def test_networks_of_timm_and_compiled_ones_are_saved_too(tmp_path: Path) -> None:
    model = timm.create_model("attention56_cifar", num_classes=3, in_chans=1, **TINY)
    compiled: Any = torch.compile(model)
    ran.save_pretrained(compiled, tmp_path)
    assert_same(ran.from_pretrained(tmp_path), model, channels=1)
    content = json.loads((tmp_path / "model.json").read_text())
    assert content["options"] == json.loads(json.dumps(TINY))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_tensors_keep_their_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    model = randomise(tiny()).to(dtype)
    ran.save_pretrained(model, tmp_path)
    loaded = ran.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_loading_leaves_random_numbers_and_files_alone(saved: Path) -> None:
    before = torch.get_rng_state()
    loaded = ran.from_pretrained(saved)
    assert torch.equal(torch.get_rng_state(), before)
    # The tensors are not the file's own memory.
    before = loaded.state_dict()["head.fc.weight"].clone()
    with open(saved / "model.safetensors", "r+b") as file:
        file.write(bytes(file.seek(0, 2) - file.seek(0)))
    assert torch.equal(loaded.state_dict()["head.fc.weight"], before)
    assert before.any()


def test_extras_are_saved_and_told_to_timm(tmp_path: Path) -> None:
    names = ("cat", "dog", "eel")
    ran.save_pretrained(tiny(), tmp_path, class_names=names, preprocessing=IMAGES)
    content = json.loads((tmp_path / "model.json").read_text())
    assert (content["num_classes"], content["in_chans"]) == (3, 3)
    assert content["class_names"] == ["cat", "dog", "eel"]
    assert content["preprocessing"]["image_size"] == 32
    loaded: Any = ran.from_pretrained(tmp_path / "model.safetensors")
    assert loaded.pretrained_cfg["label_names"] == list(names)
    config = timm.data.resolve_model_data_config(loaded)
    assert (config["input_size"], config["mean"]) == ((3, 32, 32), IMAGES.mean)
    assert (config["std"], config["crop_pct"]) == (IMAGES.std, 0.875)


def test_a_file_of_the_first_version_loads(saved: Path) -> None:
    # As trainings wrote it before networks knew what they were made from.
    old = {
        "format": "ran-network",
        "version": 1,
        "model": "attention56_cifar",
        "options": {key: [*v] if isinstance(v, tuple) else v for key, v in TINY.items()},
        "num_classes": 3,
        "in_chans": 3,
        "class_names": ["cat", "dog", "eel"],
        "preprocessing": {
            "image_size": 16,
            "crop_fraction": 0.875,
            "interpolation": "bilinear",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
    }
    (saved / "model.json").write_text(json.dumps(old))
    assert ran.from_pretrained(saved)(torch.randn(1, 3, 16, 16)).shape == (1, 3)


def refuses_to_save(model: Any, folder: Path, **extras: Any) -> str:
    with pytest.raises(UserError) as caught:
        ran.save_pretrained(model, folder, **extras)
    assert not list(folder.rglob("*.*"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    assert refuses_to_save(nn.Linear(1, 1), tmp_path) == (
        "model: expected a network of ran.create_model, got a Linear"
    )
    model = tiny()
    model.head.fc = nn.Linear(16, 5)
    assert refuses_to_save(model, tmp_path) == (
        "model: expected the tensors of attention56_cifar with its options, 2 of another shape, "
        "first head.fc.weight: expected (3, 16), got (5, 16)"
    )
    model = tiny(features_only=True, feature_cls=FeatureGetterNet)
    assert refuses_to_save(model, tmp_path).startswith("option feature_cls: expected a value of J")
    names = refuses_to_save(tiny(), tmp_path, class_names=["a", "b"])
    assert names == "class_names: expected 3 names, got ['a', 'b']"
    assert "class_names: " in refuses_to_save(tiny(), tmp_path, class_names="abc")
    channels = refuses_to_save(tiny(in_chans=1), tmp_path, preprocessing=IMAGES)
    assert channels == "preprocessing: expected 1 channel, got 3"


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: expected a folder to write in"):
        ran.save_pretrained(tiny(), tmp_path / "file")


def refused(folder_or_repo: str | Path) -> str:
    """The one line with which it is refused."""
    with pytest.raises(UserError) as caught:
        ran.from_pretrained(folder_or_repo)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_and_damaged_files_are_named(saved: Path) -> None:
    weights, card = saved / "model.safetensors", saved / "model.json"
    assert refused(saved / "no").startswith(f"{saved / 'no'}: expected a folder with model.saf")
    weights.write_bytes(weights.read_bytes()[:999])
    assert refused(saved).startswith(f"{weights}: expected a readable safetensors file")
    weights.unlink()
    assert refused(saved).startswith(f"{weights}: expected a readable safetensors file")
    card.write_text("[" * 100_000)
    assert refused(saved).startswith(f"{card}: expected a ran-network file, cannot read it")
    card.unlink()
    assert refused(saved).startswith(f"{card}: expected a ran-network file, found nothing")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", "attention57", "model attention57: name: expected one of .*'attention56'"),
        ("model", 3, "a field is malformed: model is 3"),
        ("options", [], r"a field is malformed: options is \[\]"),
        ("options", {"modules": "x"}, "modules: expected one integer"),
        ("options", {"eval": "x"}, "option: expected one of .* got 'eval'"),
        ("options", {"pretrained": True}, "pretrained: expected False"),
        ("options", {"num_classes": 3}, "expected num_classes once"),
        ("options", {"widths": [64] * 3}, "another network's: .* of another shape"),
        ("options", {"widths": [10**12] * 3}, "widths: expected one integer"),
        ("options", {"features_only": True, "feature_cls": "x"}, "options that build no"),
        ("num_classes", "3", "num_classes: expected an integer"),
        ("class_names", 3, "a field is malformed: class_names: expected a list of texts, got 3"),
        ("class_names", ["cat"], r"class_names: expected 3 names .* got \['cat'\]"),
        ("preprocessing", {"mean": 3}, "a field is malformed: preprocessing"),
        ("version", 2, "expected version 1 of ran-network, got 2"),
    ],
)
def test_a_wrong_card_is_refused(saved: Path, field: str, value: Any, message: str) -> None:
    path = saved / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(UserError, match=message) as caught:
        ran.from_pretrained(saved)
    assert "\n" not in str(caught.value)


def test_another_networks_tensors_are_refused(saved: Path) -> None:
    weights = saved / "model.safetensors"
    tensors = load_file(weights)
    tensors["extra.weight"] = torch.zeros(1)
    del tensors["stem.conv.weight"]
    tensors["head.fc.bias"] = torch.zeros(7)
    tensors["head.fc.weight"] = torch.zeros(3, 16, dtype=torch.int32)
    save_file(tensors, weights)
    assert refused(saved) == (
        f"{weights}: expected the tensors of attention56_cifar, got another network's: "
        "1 missing, first stem.conv.weight; 1 unknown, first extra.weight; "
        "1 of another shape, first head.fc.bias: expected (3,), got (7,); "
        "1 of another kind, first head.fc.weight: expected floating point, got torch.int32"
    )


def test_pickles_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(tiny().state_dict(), tmp_path / "model.ckpt")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("opened a pickle"))
    assert "expected a folder with model.safetensors" in refused(tmp_path / "model.ckpt")
    assert "expected a ran-network file, found nothing" in refused(tmp_path)


def test_a_repository_is_downloaded(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, name: str, *, revision: str | None) -> str:
        asked.append((repository, name, revision))
        return str(saved / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    loaded = ran.from_pretrained("some-owner/net.v1", revision="v1")
    assert_same(loaded, ran.from_pretrained(saved))
    assert sorted(asked) == [
        ("some-owner/net.v1", "model.json", "v1"),
        ("some-owner/net.v1", "model.safetensors", "v1"),
    ]


def test_a_folder_goes_before_a_repository(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("asked"))
    monkeypatch.chdir(saved.parent.parent)
    ran.from_pretrained(f"{saved.parent.name}/{saved.name}")
    for name in ("owner", "a/b/c", "../x", "./x", "owner/.hidden", "owner/", "owner/a b"):
        assert "expected a folder with model.safetensors, or owner/name" in refused(name)
    assert "expected a folder" in refused(Path("owner/name"))


def test_what_keeps_a_repository_away_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route to host\nand a long story")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    assert refused("owner/name") == (
        "owner/name: found no such folder, and a repository gives no model.json: "
        "ConnectionError: no route to host"
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refused("owner/name") == (
        "owner/name: found no such folder, and a repository needs huggingface_hub, "
        "which is not installed"
    )
