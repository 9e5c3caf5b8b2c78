import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ran.data import Preprocessing
from ran.errors import UserError
from ran.serving import export as exporting
from ran.serving.export import export
from ran.weights.network_card import NetworkCard, load_network, save_network
from tests.tiny import TINY_OPTIONS, random_image

needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in exporting.NEEDS[".onnx"]),
    reason="needs the extra 'export'",
)

RAN = ("attention56_cifar_pool", TINY_OPTIONS, 3)
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "mixed": RAN,
    "channel": (RAN[0], {**TINY_OPTIONS, "activation": "channel", "mask_depths": [2]}, 1),
    "spatial": (RAN[0], {**TINY_OPTIONS, "activation": "spatial", "residual": False}, 3),
    "cbam": ("cbam_resnet18", {"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16]}, 3),
}


@pytest.fixture
def save(tmp_path: Path) -> Callable[[str], Path]:
    def run(name: str) -> Path:
        model, options, channels = NETWORKS[name]
        preprocessing = Preprocessing(16, 0.875, (0.45,) * channels, (0.25,) * channels)
        card = NetworkCard(model, ("cat", "dog", "eel"), preprocessing, options)
        network = card.build()
        with torch.no_grad():  # masks and logits far from constant, and statistics of their own
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            network(torch.randn(8, channels, 16, 16))
        save_network(network, card, tmp_path)
        return tmp_path

    return run


def on_images(folder: Path, count: int, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    network, card = load_network(folder)
    x = torch.randn(count, card.preprocessing.channels, size, size)
    with torch.no_grad():
        return x, network(x)


@needs_onnx
@pytest.mark.parametrize("name", ["channel", "spatial", "cbam"])
def test_onnx_gives_the_networks_logits_for_any_batch(
    save: Callable[[str], Path], name: str
) -> None:
    import onnx
    import onnxruntime

    folder = save(name)
    report = export(folder, folder / "model.onnx")
    assert report.error <= 1e-5
    assert report.network_error <= 1e-5
    assert report.batches == (1, 3)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    for count in (1, 2, 5):
        x, expected = on_images(folder, count)
        (found,) = session.run(["logits"], {"images": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
    model = onnx.load(folder / "model.onnx")
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(properties["ran-network.json"])["class_names"] == ["cat", "dog", "eel"]
    assert sorted(path.name for path in folder.iterdir()) == [
        *("model.json", "model.onnx", "model.safetensors")
    ]


def test_a_pt2_file_runs_where_this_package_is_not(save: Callable[[str], Path]) -> None:
    folder = save("mixed")
    random_image((30, 40), 0).save(folder / "photo.png")
    report = export(folder, folder / "model.pt2", images=[folder / "photo.png"], image_size=24)
    assert report.operators
    assert not any("ran" in operator.split(".")[0] for operator in report.operators)
    x, expected = on_images(folder, 5, size=24)
    torch.save((x, expected), folder / "expected.pt")
    program = (
        "import sys, json, torch\n"
        "sys.modules['ran'] = sys.modules['ran_kernels'] = None\n"  # importing them fails
        "files = {'ran-network.json': ''}\n"
        "module = torch.export.load('model.pt2', extra_files=files).module()\n"
        "x, expected = torch.load('expected.pt')\n"
        "torch.testing.assert_close(module(x), expected)\n"
        "torch.testing.assert_close(module(x[:1]), expected[:1])\n"
        "print(json.loads(files['ran-network.json'])['preprocessing']['image_size'])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "24\n"


def test_normalisations_are_folded_unless_asked_otherwise(save: Callable[[str], Path]) -> None:
    folder = save("mixed")
    folded = export(folder, folder / "folded.pt2").operators
    plain = export(folder, folder / "plain.pt2", deploy=False).operators
    assert any("batch_norm" in operator for operator in plain)
    assert not any("batch_norm" in operator for operator in folded)


def test_a_failed_check_leaves_no_file(
    save: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save("mixed")
    output = folder / "model.pt2"
    output.write_bytes(b"mine")
    before = sorted(folder.iterdir())
    real = exporting._write_pt2

    def slightly_wrong(*arguments: Any) -> Any:
        program = real(*arguments)
        return lambda x: program(x) * 1.001

    monkeypatch.setattr(exporting, "_write_pt2", slightly_wrong)
    with pytest.raises(UserError, match=r"model.pt2: expected the logits .* not written"):
        export(folder, output, overwrite=True)
    assert output.read_bytes() == b"mine"
    assert sorted(folder.iterdir()) == before


def test_a_network_of_nan_is_not_written(save: Callable[[str], Path]) -> None:
    folder = save("mixed")
    network, card = load_network(folder)
    torch.nn.init.constant_(network.get_classifier().bias, float("nan"))  # type: ignore[operator]
    save_network(network, card, folder)
    with pytest.raises(UserError, match="expected finite numbers, "):
        export(folder, folder / "model.pt2")
    assert not list(folder.glob("*.pt2"))


@pytest.mark.parametrize("suffix", [".pt2", pytest.param(".onnx", marks=needs_onnx)])
def test_files_of_any_name_are_written_and_read_again(tmp_path: Path, suffix: str) -> None:
    batch, network = torch.randn(2, 3, 4, 4), torch.nn.Conv2d(3, 2, 1)
    card = NetworkCard("any", ("cat", "dog"), Preprocessing(4, 1.0, (0.5,) * 3, (0.5,) * 3))
    write = exporting._write_pt2 if suffix == ".pt2" else exporting._write_onnx
    path = tmp_path / f"caf\udce9{suffix}"  # no UTF-8
    found = write(exporting._trace(network, batch), path, card)(batch)
    torch.testing.assert_close(found, network(batch), rtol=1e-4, atol=1e-5)
    assert path.stat().st_size


def test_missing_packages_are_named(
    save: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save("mixed")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        export(folder, folder / "model.onnx")
    assert "expected onnx, onnxscript, onnxruntime to be installed" in str(caught.value)
    assert "ran-attention[export]" in str(caught.value)


def test_bad_outputs(save: Callable[[str], Path]) -> None:
    folder = save("mixed")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for output, reason in (
        (folder / "model.tflite", r"ends in \.onnx or \.pt2"),
        (folder / "no" / "model.pt2", "expected a folder to write in"),
    ):
        with pytest.raises(UserError, match=reason):
            export(folder, output)
    (folder / "there.pt2").write_bytes(b"mine")
    with pytest.raises(UserError, match="it exists"):
        export(folder, folder / "there.pt2")
    with pytest.raises(UserError, match="image size 1: expected at least"):
        export(folder, folder / "model.pt2", image_size=1)
    assert {path: path.read_bytes() for path in folder.iterdir()} == {
        **before,
        folder / "there.pt2": b"mine",
    }
