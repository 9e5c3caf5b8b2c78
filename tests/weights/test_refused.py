"""Networks that are not saved, and folders that are not loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models._features import FeatureGetterNet
from torch import nn

import ran
from ran.errors import UserError

from .tiny import IMAGES, refused, tiny, tiny_cbam


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
    model.stem.conv = nn.Conv2d(3, 9, 3, bias=False)
    assert refuses_to_save(model, tmp_path) == (
        "model: expected the tensors of attention56_cifar with its options, 1 of another shape, "
        "first stem.conv.weight: expected (8, 3, 3, 3), got (9, 3, 3, 3)"
    )
    model = tiny(features_only=True, feature_cls=FeatureGetterNet)
    assert refuses_to_save(model, tmp_path).startswith("option feature_cls: expected a value of J")
    names = refuses_to_save(tiny(), tmp_path, class_names=["a", "b"])
    assert names == "class_names: expected 3 names, got ['a', 'b']"
    assert "class_names: " in refuses_to_save(tiny(), tmp_path, class_names="abc")
    channels = refuses_to_save(tiny(in_chans=1), tmp_path, preprocessing=IMAGES)
    assert channels == "preprocessing: expected 1 channel, got 3"


@pytest.mark.parametrize("make", [tiny, tiny_cbam])
@pytest.mark.parametrize(
    "head", [nn.Sequential(nn.Dropout(), nn.Linear(16, 5)), nn.Linear(16, 5, bias=False)], ids=str
)
def test_a_head_of_another_kind_is_refused_with_the_way(
    make: Any, head: nn.Module, tmp_path: Path
) -> None:
    model = make()
    holder, name = (model.head, "head.fc") if hasattr(model, "head") else (model, "fc")
    holder.fc = head
    said = refuses_to_save(model, tmp_path)
    features = model.num_features
    assert said.startswith(
        f"model: expected a Linear({features}, num_classes) with a bias for its {name}, as "
        f"reset_classifier(num_classes) makes, got {type(head).__name__}("
    )
    assert said.endswith("; its state_dict() can be saved by torch.save")


def test_a_whole_head_of_another_kind_is_refused_with_the_way(tmp_path: Path) -> None:
    for head in (nn.Linear(16, 5), nn.Identity()):
        model = tiny()
        model.head = head
        assert "as reset_classifier(num_classes) makes, got" in refuses_to_save(model, tmp_path)
    model = tiny()
    model.head.fc = nn.utils.parametrizations.weight_norm(nn.Linear(16, 5))
    assert "got ParametrizedLinear(" in refuses_to_save(model, tmp_path)


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: expected a folder to write in"):
        ran.save_pretrained(tiny(), tmp_path / "file")


def test_missing_and_damaged_files_are_named(saved: Path) -> None:
    weights, card = saved / "model.safetensors", saved / "model.json"
    assert refused(saved / "no").startswith(f"{saved / 'no'}: expected a folder with model.saf")
    weights.write_bytes(weights.read_bytes()[:999])
    assert refused(saved).startswith(f"{weights}: expected a readable safetensors file")
    weights.unlink()
    assert refused(saved) == f"{weights}: expected a checkpoint, found no file there"
    weights.write_bytes(b"")
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
    assert "expected a checkpoint of ran train, it has no table 'ran_network'" in refused(
        tmp_path / "model.ckpt"
    )
    (tmp_path / "model.ckpt").rename(tmp_path / "model.pth")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("opened a pickle"))
    assert "expected a folder with model.safetensors" in refused(tmp_path / "model.pth")
    said = refused(tmp_path)
    assert said == f"{tmp_path / 'model.safetensors'}: expected a checkpoint, found no file there"
