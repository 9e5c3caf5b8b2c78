"""Networks saved and loaded whole, in folders and from repositories."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import ran
from tests.models.helpers import randomise

from .tiny import IMAGES, TINY, assert_same, refused, tiny, tiny_cbam


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
    for name in ("owner", "a/b/c", "../not-there", "./x", "owner/.hidden", "owner/", "owner/a b"):
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
