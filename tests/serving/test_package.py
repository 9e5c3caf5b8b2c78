"""Networks compiled by AOTInductor, in processes that have no ran_kernels: Python's and C++'s."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import ran_kernels
from ran.cli import app
from ran.data import Preprocessing
from ran.errors import UserError
from ran.serving import aoti
from ran.serving.export import ExportReport, export
from ran.weights.network_card import NetworkCard, save_network
from ran_kernels import extension
from ran_kernels.library import NATIVE
from tests.tiny import TINY_OPTIONS

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(extension.path is None, reason="needs the compiled extension"),
    pytest.mark.skipif(not shutil.which("g++"), reason="AOTInductor needs g++"),
]
CARD = NetworkCard(
    "attention56_cifar_pool",
    ("cat", "dog", "eel"),
    Preprocessing(16, 0.875, (0.45,) * 3, (0.25,) * 3),
    TINY_OPTIONS,
)


def save(folder: Path, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network = CARD.build()
    with torch.no_grad():  # masks and logits far from constant, and statistics of their own
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        network(torch.randn(8, 3, 16, 16))
    save_network(network, CARD, folder)
    return network.eval()


def quick_to_compile() -> Any:
    """Of what surrounds the kernels, and with no headers compiled ahead for a next time."""
    config = {
        "aot_inductor.compile_wrapper_opt_level": "O0",
        "aot_inductor.precompile_headers": False,
    }
    return torch._inductor.config.patch(config)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportReport]:
    """A folder with net.pt2, images.pt and expected.pt, the network's own logits."""
    folder = tmp_path_factory.mktemp("package")
    network = save(folder)
    with quick_to_compile():
        report = export(folder, folder / "net.pt2", aoti=True)
    images = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        torch.save(network(images), folder / "expected.pt")
    torch.save(images, folder / "images.pt")
    return folder, report


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LIBRARY": str(ran_kernels.library_path())},
        capture_output=True,
        text=True,
        check=False,
    )


#: `right()`: whether the package gives the network's logits, for several images and for one.
RIGHT = """
import json, os, sys, torch
def right():
    compiled = torch._inductor.aoti_load_package('net.pt2')
    images, expected = torch.load('images.pt'), torch.load('expected.pt')
    for n in (5, 1):
        torch.testing.assert_close(compiled(images[:n]), expected[:n], rtol=1e-4, atol=1e-5)
load = lambda: torch.ops.load_library(os.environ['LIBRARY'])
"""


def test_a_package_holds_our_kernels_and_says_what_it_needs(
    package: tuple[Path, ExportReport],
) -> None:
    folder, report = package
    assert report.error <= 1e-5
    assert report.library == ran_kernels.library_path()
    ours = {name for name in report.operators if name.startswith("ran.")}
    assert {"ran.attention_gate.default", "ran.upsample.default"} <= ours
    metadata = torch._inductor.aoti_load_package(folder / "net.pt2").get_metadata()
    assert json.loads(metadata["ran-network.json"]) == CARD.to_json()


#: What torch knows of the operators, as {name: [schema, tags]}.
KNOWN = """
def known():
    names = {n.split('::')[1] for n in torch._C._dispatch_get_all_op_names() if n[:5] == 'ran::'}
    found = {n: getattr(torch.ops.ran, n).default for n in names if '.' not in n}
    print(json.dumps({n: [str(op._schema), sorted(map(str, op.tags))] for n, op in found.items()}))
"""


def test_it_runs_where_torch_alone_was_imported_and_makes_way_for_ran_kernels(
    package: tuple[Path, ExportReport],
) -> None:
    program = """
names = 'ran', 'ran_kernels'
sys.modules.update(dict.fromkeys(names))  # importing them fails
try: right()
except RuntimeError as error: assert 'ran::' in str(error), error
else: raise AssertionError('it needs no library')
load()
right()
known()
for name in names: del sys.modules[name]
import ran_kernels
known()
right()
"""
    ended = run(RIGHT + KNOWN + program, package[0])
    assert ended.returncode == 0, ended.stderr
    alone, then = map(json.loads, ended.stdout.splitlines())
    own = {name: getattr(torch.ops.ran, name).default for name in NATIVE}
    assert {name: schema for name, (schema, _) in alone.items()} == {
        name: str(operator._schema) for name, operator in own.items()
    }
    for name, operator in own.items():
        assert operator.tags
        assert then[name] == [str(operator._schema), sorted(map(str, operator.tags))]


def test_pythons_operators_stay_where_the_library_comes_after(
    package: tuple[Path, ExportReport],
) -> None:
    ended = run(f"{RIGHT}{KNOWN}import ran_kernels\nknown()\nload()\nknown()\nright()", package[0])
    assert ended.returncode == 0, ended.stderr
    # All that is printed, but what torch says of the machine's CUDA.
    said = [line for line in ended.stderr.splitlines() if "No CUDA runtime is found" not in line]
    assert said == []
    before, after = ended.stdout.splitlines()
    assert before == after


#: What a network in evaluation calls; normalisations are PyTorch's own there.
INFERENCE = (
    *("add_affine_relu", "attention_gate", "cbam_gate", "channel_pool", "spatial_pool"),
    *("upsample", "upsample_add"),
)


class Everything(nn.Module):
    """The operators that networks for inference may hold, each as the kernels take it."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y, scale = x.flip(1), x.mean((0, 2, 3))
        mean, most = ran_kernels.channel_pool(x)
        spatial = ran_kernels.spatial_pool(x, mean)
        up = ran_kernels.upsample(x, (7, 9))
        return (
            *(ran_kernels.attention_gate(x, y, activation=a) for a in ("mixed", "channel")),
            ran_kernels.attention_gate(x, y, activation="spatial", residual=False),
            *(mean, most, spatial, ran_kernels.spatial_pool(x), up),
            ran_kernels.upsample_add(x, up, align_corners=False),
            ran_kernels.cbam_gate(x, most, spatial[:, :1], shortcut=y, relu=True),
            ran_kernels.cbam_gate(x, mean, spatial[:, :1]),
            *ran_kernels.add_affine_relu(x, y, scale, scale),
            ran_kernels.affine_relu(x, scale, scale),
            ran_kernels.batch_norm_relu(x, scale, scale.abs(), training=False),
        )


def test_every_operator_for_inference_runs_in_a_package(tmp_path: Path) -> None:
    x = torch.randn(2, 4, 4, 5)
    with torch.no_grad(), ran_kernels.backend("native"):
        expected = Everything()(x)
        batch = torch.export.Dim("batch")
        program = torch.export.export(Everything(), (x,), dynamic_shapes=({0: batch},))
        with quick_to_compile():
            aoti.write_package(program, tmp_path / "net.pt2", {})
    called = {str(node.target) for node in program.graph.nodes if str(node.target)[:4] == "ran."}
    assert called == {f"ran.{name}.default" for name in INFERENCE}
    torch.save((x, expected), tmp_path / "expected.pt")
    ended = run(
        "import os, torch\n"
        "torch.ops.load_library(os.environ['LIBRARY'])\n"
        "x, expected = torch.load('expected.pt')\n"
        "torch.testing.assert_close(torch._inductor.aoti_load_package('net.pt2')(x), expected)",
        tmp_path,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not installed")
def test_the_cpp_example_prints_the_networks_scores(
    package: tuple[Path, ExportReport], tmp_path: Path
) -> None:
    folder, report = package
    made = tmp_path / "build"
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    for command in (
        ["cmake", "-S", str(ROOT / "examples/cpp"), "-B", str(made), prefix],
        ["cmake", "--build", str(made)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    torch.load(folder / "images.pt").numpy().tofile(tmp_path / "images.bin")
    given = [str(report.library), str(folder / "net.pt2"), str(tmp_path / "images.bin"), "3", "16"]
    command = [str(made / "scores"), *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = [[float(score) for score in line.split()] for line in done.stdout.splitlines()]
    expected = torch.load(folder / "expected.pt").softmax(1)
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=1e-5)


def test_the_command_says_what_to_load(
    package: tuple[Path, ExportReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = (package[0] / "net.pt2").read_bytes()

    def compile_again(program: Any, *, package_path: Any, **options: Any) -> None:
        package_path.write(compiled)

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile_again)
    output = tmp_path / "net.pt2"
    done = CliRunner().invoke(app, ["export", str(package[0]), "-o", str(output), "--aoti"])
    assert done.exit_code == 0, done.output
    written, load = done.stdout.splitlines()
    assert written.startswith(f"Written: {output} (")
    assert str(ran_kernels.library_path()) in load
    assert output.read_bytes() == compiled
    # A package of another network is not written.
    other = tmp_path / "other"
    other.mkdir()
    save(other, seed=1)
    with pytest.raises(UserError, match=r"net\.pt2: expected the logits of .* not written"):
        export(other, other / "net.pt2", aoti=True)
    assert not (other / "net.pt2").exists()


def test_a_package_is_refused_before_anything_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"net\.onnx: expected a name that ends in \.pt2"):
        export(tmp_path, tmp_path / "net.onnx", aoti=True)
    with pytest.raises(UserError, match=r"expected operators of the comp.*ran\.conv_gate\.triton"):
        aoti.require_native(("aten.relu.default", "ran.conv_gate.triton"))

    def no_compiler(*arguments: Any, **options: Any) -> None:
        raise torch._inductor.exc.InvalidCxxCompiler

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", no_compiler)
    with pytest.raises(UserError, match=r"net\.pt2: cannot write the file: No working C\+\+"):
        export(tmp_path, tmp_path / "net.pt2", aoti=True)
    assert sorted(tmp_path.iterdir()) == before
