import json
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ran
from ran.data import Preprocessing
from ran.errors import DefaultsWarning, UserError
from ran.files import replacing
from ran.training.run import TrainingResult
from ran.weights.network_card import NetworkCard, load_network, save_network
from tests.tiny import TINY_OPTIONS

CARD = NetworkCard(
    model="attention56_cifar_pool",
    class_names=("cat", "dog", "eel"),
    preprocessing=Preprocessing(16, 0.875, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)),
    options=TINY_OPTIONS,
)

#: What is usual for images of CIFAR.
CIFAR = Preprocessing(32, 1.0, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_network(CARD.build(), CARD, tmp_path)
    return tmp_path


@pytest.mark.parametrize("given", [".", "model.safetensors"])
def test_a_saved_network_comes_back_with_equal_outputs(tmp_path: Path, given: str) -> None:
    network = CARD.build()
    images = torch.randn(4, 3, 16, 16)
    network(images)  # moves the running statistics off their first values
    network.eval()
    save_network(network, CARD, tmp_path)
    loaded, card = load_network(tmp_path / given)
    assert card == CARD
    assert not loaded.training
    torch.testing.assert_close(loaded(images), network(images), rtol=0, atol=0)


def test_weights_with_channels_last_are_saved_too(tmp_path: Path) -> None:
    network = CARD.build().to(memory_format=torch.channels_last)
    save_network(network, CARD, tmp_path)
    loaded, _ = load_network(tmp_path)
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_the_json_says_how_to_rebuild_the_network(saved: Path) -> None:
    content = json.loads((saved / "model.json").read_text())
    assert content["model"] == "attention56_cifar_pool"
    assert content["options"] == TINY_OPTIONS
    assert (content["num_classes"], content["in_chans"]) == (3, 3)
    assert content["class_names"] == ["cat", "dog", "eel"]
    assert content["preprocessing"]["image_size"] == 16


def test_best_and_last_checkpoints_load(trained: TrainingResult) -> None:
    images = torch.randn(2, 1, 16, 16)
    best, card = load_network(trained.folder / "best.ckpt")
    weights, same_card = load_network(trained.folder)
    assert card == same_card
    torch.testing.assert_close(best(images), weights(images), rtol=0, atol=0)
    last, _ = load_network(trained.folder / "last.ckpt")
    assert last(images).shape == (2, 10)


def test_what_a_folder_does_not_say_has_defaults_said_aloud(tmp_path: Path) -> None:
    model: Any = ran.create_model("attention56_cifar_pool", num_classes=3, **TINY_OPTIONS)
    ran.save_pretrained(model, tmp_path)
    with pytest.warns(DefaultsWarning) as said:
        _, card = load_network(tmp_path)
    assert card.class_names == ("0", "1", "2")
    assert card.preprocessing == CIFAR
    names, images = (str(warning.message) for warning in said)
    assert (
        names == f"{tmp_path / 'model.json'}: no class names are known, classes are called 0 to 2"
    )
    assert "as is usual for attention56_cifar_pool: 32×32 pixels of 1 of the image" in images
    ran.save_pretrained(model, tmp_path, class_names=("a", "b", "c"), preprocessing=CIFAR)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_network(tmp_path)[1].class_names == ("a", "b", "c")


def test_a_network_in_memory_is_copied_with_what_it_knows(saved: Path) -> None:
    model: Any = ran.from_pretrained(saved).train().double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network, card = load_network(torch.compile(model))  # type: ignore[arg-type]
    assert card == CARD
    assert network is not model
    assert (network.training, model.training) == (False, True)
    torch.testing.assert_close(network.state_dict(), model.state_dict(), rtol=0, atol=0)
    with pytest.warns(DefaultsWarning, match="model: no class names are known.* 0 to 3"):
        assert load_network(ran.from_pretrained(saved, num_classes=4))[1].preprocessing == (
            CARD.preprocessing
        )
    model.head.fc = torch.nn.Sequential(torch.nn.Linear(32, 5)).double()  # by hand
    with pytest.warns(DefaultsWarning, match="0 to 4"):
        assert load_network(model)[1].class_names == tuple("01234")


def test_of_another_number_of_channels_mean_and_std_are_the_average() -> None:
    model = ran.create_model("attention56_cifar", in_chans=2, **TINY_OPTIONS)
    with pytest.warns(DefaultsWarning):
        _, card = load_network(model)
    assert card.preprocessing.mean == (sum(CIFAR.mean) / 3,) * 2


def test_networks_without_classes_are_refused(tmp_path: Path) -> None:
    for options in ({"num_classes": 0}, {"features_only": True}):
        model = ran.create_model("attention56_cifar", **TINY_OPTIONS, **options)
        ran.save_pretrained(model, tmp_path)
        assert "model.json: expected a network with a classifier" in refused(tmp_path)
        with pytest.raises(UserError, match=r"^model: expected a network of ran\.create_model or"):
            load_network(model)
    with pytest.raises(UserError, match="got a Linear"):
        load_network(torch.nn.Linear(1, 1))


def refused(path: Path) -> str:
    """The one line with which ``path`` is refused."""
    with pytest.raises(UserError) as caught:
        load_network(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_of_another_network_are_refused_with_the_first_differences(saved: Path) -> None:
    weights = saved / "model.safetensors"
    tensors = load_file(weights)
    tensors["extra.weight"] = torch.zeros(1)
    del tensors["stem.conv.weight"]
    tensors["head.fc.bias"] = torch.zeros(7)
    save_file(tensors, weights)
    assert refused(saved) == (
        f"{weights}: expected the tensors of attention56_cifar_pool, got another network's: "
        "1 missing, first stem.conv.weight; 1 unknown, first extra.weight; "
        "1 of another shape, first head.fc.bias: expected (3,), got (7,)"
    )


def test_a_json_of_another_network_is_refused(saved: Path) -> None:
    path = saved / "model.json"
    path.write_text(path.read_text().replace("_pool", "_wide"))
    assert "expected the tensors of attention56_cifar_wide" in refused(saved)
    path.write_text(path.read_text().replace("attention56_cifar_wide", "attention57"))
    assert "attention57" in refused(saved)


def test_missing_files_are_named(saved: Path, tmp_path: Path) -> None:
    assert refused(tmp_path / "no").startswith(f"{tmp_path / 'no'}: expected a checkpoint")
    (image := tmp_path / "image.png").write_bytes(b"")
    assert refused(image) == f"{image}: expected a folder, a .safetensors or a .ckpt file"
    (saved / "model.json").unlink()
    assert refused(saved).startswith(f"{saved / 'model.json'}: expected a ran-network file")
    (saved / "model.safetensors").unlink()
    assert refused(saved).startswith(f"{saved / 'model.safetensors'}: expected a checkpoint")


def test_damaged_files_are_named(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert refused(saved).startswith(f"{weights}: expected a readable safetensors file")
    checkpoint = saved / "best.ckpt"
    checkpoint.write_bytes(b"damaged")
    assert refused(checkpoint).startswith(f"{checkpoint}: expected a readable checkpoint")


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("ran-network", "other", '"format": "ran-network"'),
        ('"version": 1', '"version": 2', "expected version 1 of ran-network, got 2"),
        ('"image_size": 16', '"image_size": "wide"', "malformed"),
        ('"options"', '"choices"', "expected a field 'options'"),
        ("{", "[", "cannot read it"),
    ],
)
def test_a_wrong_json_is_named(saved: Path, before: str, after: str, expected: str) -> None:
    path = saved / "model.json"
    path.write_text(path.read_text().replace(before, after, 1))
    message = refused(saved)
    assert message.startswith(str(path))
    assert expected in message


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path(self.path),)  # type: ignore[return-value]


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    trap, sprung = tmp_path / "trap.ckpt", tmp_path / "sprung"
    torch.save({"state_dict": {}, "ran_network": Trap(sprung)}, trap)
    assert "expected a readable checkpoint of tensors and numbers" in refused(trap)
    assert not sprung.exists()
    trap.write_bytes(pickle.dumps(Trap(sprung), protocol=2))
    refused(trap)
    assert not sprung.exists()


def test_another_programs_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    assert "expected a checkpoint of ran train" in refused(tmp_path / "other.ckpt")


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(3),
        {"ran_network": CARD.to_json(), "state_dict": None},
        {"ran_network": CARD.to_json(), "state_dict": {0: torch.zeros(1)}},
        {"ran_network": CARD.to_json(), "state_dict": {"network.a": 1}},
        {"ran_network": torch.zeros(3), "state_dict": {}},
    ],
)
def test_a_checkpoint_of_other_contents_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    message = refused(tmp_path / "other.ckpt")
    assert message.startswith(f"{tmp_path / 'other.ckpt'}: expected ")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail_half_way() -> None:
        with replacing(path) as partial:
            partial.write_text("ne")
            raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match=re.escape("disk on fire")):
        fail_half_way()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]
