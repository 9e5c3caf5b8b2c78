"""Networks saved and loaded whole, in folders and from repositories."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import ran
from ran.errors import UserError
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


class Hub:
    """What huggingface_hub is asked, and what it answers from ``folder``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path | None, silent: bool) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.folder, self.silent = folder, silent
        monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", self.metadata)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", self.download)

    def metadata(self, url: str, *, timeout: float) -> None:
        assert url.endswith("/model.json")
        assert timeout <= 5
        if self.silent:
            raise ConnectionError("no route to host\nand a long story")

    def download(
        self, repository: str, name: str, *, revision: str | None, local_files_only: bool
    ) -> str:
        self.asked.append((repository, name, revision, local_files_only))
        if self.folder is None:
            raise FileNotFoundError("nothing cached")
        return str(self.folder / name)


@pytest.mark.parametrize("silent", [False, True])
def test_a_repository_is_downloaded_or_its_copy_taken(
    silent: bool, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(monkeypatch, saved, silent)
    loaded = ran.from_pretrained("some-owner/net.v1", revision="v1")
    assert_same(loaded, ran.from_pretrained(saved))
    assert sorted(hub.asked) == [
        ("some-owner/net.v1", "model.json", "v1", silent),
        ("some-owner/net.v1", "model.safetensors", "v1", silent),
    ]


def test_a_folder_goes_before_a_repository(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, None, silent=True)
    monkeypatch.chdir(saved.parent.parent)
    ran.from_pretrained(f"{saved.parent.name}/{saved.name}")
    for name in ("owner", "a/b/c", "../not-there", "./x", "owner/.hidden", "owner/", "owner/a b"):
        said = refused(name)
        assert "expected a folder with model.safetensors, a .ckpt file, or owner/name" in said
    assert "expected a folder" in refused(Path("owner/name"))
    assert not hub.asked


def test_what_keeps_a_repository_away_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, None, silent=True)
    assert refused("owner/name") == (
        "owner/name: found no such folder, and a repository gives no model.json: "
        "ConnectionError: no route to host"
    )
    Hub(monkeypatch, None, silent=False)
    assert refused("owner/name").endswith("no model.json: FileNotFoundError: nothing cached")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refused("owner/name") == (
        "owner/name: found no such folder, and a repository needs huggingface_hub, "
        "which is not installed"
    )


def test_a_repository_that_cannot_be_reached_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # huggingface_hub's own, at a port where nobody listens: it would wait and ask five times more.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("waited"))
    assert "a repository gives no model.json: ConnectError: " in refused("owner/name")


@pytest.mark.parametrize("make", [tiny, tiny_cbam])
def test_a_classifier_exchanged_by_hand_comes_back(make: Any, tmp_path: Path) -> None:
    for head in (nn.Linear(make().num_features, 5), nn.Identity()):
        model = make()
        holder = getattr(model, "head", model)
        holder.fc = head
        ran.save_pretrained(model, tmp_path)
        loaded: Any = ran.from_pretrained(tmp_path)
        assert loaded.num_classes == getattr(head, "out_features", 0)
        assert_same(loaded, model)


@pytest.mark.parametrize("make", [tiny, tiny_cbam])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_new_head_is_started_and_the_rest_loaded(
    make: Any, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = randomise(make()).to(dtype)
    ran.save_pretrained(model, tmp_path, class_names=["a", "b", "c"])
    loaded: Any = ran.from_pretrained(tmp_path, num_classes=4)
    head = "head.fc" if hasattr(model, "head") else "fc"
    expected = {k: v for k, v in model.state_dict().items() if not k.startswith(f"{head}.")}
    got = loaded.state_dict()
    torch.testing.assert_close({k: got[k] for k in expected}, expected, rtol=0, atol=0)
    weight = got[f"{head}.weight"]
    assert (weight.shape, weight.dtype) == ((4, model.num_features), dtype)
    assert weight.std() > 0
    assert weight.isfinite().all()
    report = loaded.load_report
    assert set(report.loaded) == set(expected)
    assert set(report.left) == set(report.unexpected) == {f"{head}.weight", f"{head}.bias"}
    assert f"2 left as they were (a new classifier of 4 classes): {head}.weight" in str(report)
    assert loaded.pretrained_cfg["num_classes"] == 4
    assert "label_names" not in loaded.pretrained_cfg
    ran.save_pretrained(loaded, tmp_path / "again")
    again = ran.from_pretrained(tmp_path / "again").state_dict()
    torch.testing.assert_close(again, got, rtol=0, atol=0)


def test_as_many_classes_as_were_saved_are_loaded_too(saved: Path) -> None:
    loaded: Any = ran.from_pretrained(saved, num_classes=3)
    assert_same(loaded, ran.from_pretrained(saved))
    assert not loaded.load_report.left
    none: Any = ran.from_pretrained(saved, num_classes=0)
    assert none(torch.randn(1, 3, 16, 16)).shape == (1, none.num_features)
    assert set(none.load_report.unexpected) == {"head.fc.weight", "head.fc.bias"}
    ran.save_pretrained(none, saved)
    again: Any = ran.from_pretrained(saved, num_classes=4)
    assert set(again.load_report.left) == {"head.fc.weight", "head.fc.bias"}


def test_a_head_that_cannot_be_is_refused(saved: Path) -> None:
    for wrong in (-1, 2.5, "4", True):
        with pytest.raises(UserError, match="num_classes: expected an integer of at least 0"):
            ran.from_pretrained(saved, num_classes=wrong)  # type: ignore[arg-type]
    ran.save_pretrained(tiny(features_only=True), saved)
    with pytest.raises(UserError, match="num_classes: expected None for a feature extractor"):
        ran.from_pretrained(saved, num_classes=4)


def test_the_checkpoint_of_a_training_loads(saved: Path, tmp_path: Path) -> None:
    path, model = tmp_path / "x.ckpt", ran.from_pretrained(saved)
    tensors = {f"network.{key}": value for key, value in model.state_dict().items()}
    content = json.loads((saved / "model.json").read_text())
    torch.save({"ran_network": content, "state_dict": tensors}, path)
    assert_same(ran.from_pretrained(path), model)
    four: Any = ran.from_pretrained(str(path), num_classes=4)
    assert four(torch.randn(1, 3, 16, 16)).shape == (1, 4)
