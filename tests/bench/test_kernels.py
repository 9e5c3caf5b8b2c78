"""The benchmark of the operators: what it compares, and with what."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.compare import require_as_exact, require_close
from bench.kernels.cases import CASES
from bench.kernels.test_operators import incoming, prepare

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["CBAM", "CBAM+shortcut+ReLU"])
def test_low_precision_is_held_to_what_pytorch_is_off_by(name: str) -> None:
    # Where bfloat16 rounds two maxima to one, the gradient goes to another element than in float64.
    case = CASES[name]
    torch.manual_seed(0)
    inputs = case.inputs(torch.randn(2, 256, 28, 28, dtype=torch.bfloat16))
    grads = incoming(case, inputs)
    own = prepare(case.reference, inputs, grads)()
    doubles = [[t.double() for t in tensors] for tensors in (inputs, grads)]
    exact = prepare(case.reference, *doubles)()
    require_as_exact("ours", prepare(case.ours, inputs, grads)(), own, exact)
    with pytest.raises(ValueError, match="is off by"):
        require_close("eager", own, exact, torch.bfloat16)
    wrong = [own[0] * 1.1, *own[1:]]
    with pytest.raises(ValueError, match="ours: expected result 0 within"):
        require_as_exact("ours", wrong, own, exact)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.backward])
def test_every_backward_runs(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    big = torch.randn(2, 32, 6, 6, dtype=torch.float64)
    inputs = case.inputs(big.contiguous(memory_format=torch.channels_last))
    grads = incoming(case, inputs)
    plain = prepare(case.reference, inputs, grads)()
    torch.testing.assert_close(prepare(case.ours, inputs, grads)(), plain)


def run_benchmark(tmp_path: Path, plugin: str, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit code and result file of add_affine_relu's, forward, with a plugin beside."""
    (tmp_path / "beside.py").write_text("import torch\n" + plugin)
    command = [sys.executable, "-m", "pytest", "bench/kernels", "-q", "-p", "no:cacheprovider"]
    command += ["--op=add_affine_relu", "--device=cpu", "--batch=1", "--rounds=1"]
    command += ["--layout=contiguous", "-k", "not backward", "-p", "beside", *options]
    # Of a worker that shares the tests pytest-benchmark takes no figures.
    own = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_XDIST")}
    environment = {**own, "PYTHONPATH": str(tmp_path)}
    path = tmp_path / "r.json"
    command += ["--result", str(path)]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert path.is_file(), ended.stdout
    return ended.returncode, json.loads(path.read_text())


def test_a_run_that_is_cut_keeps_what_has_ended(tmp_path: Path) -> None:
    plugin = (
        "import os, pytest\n"
        "torch.compile = lambda function, **_: function\n"  # this is about the file
        "ended = []\n"
        "@pytest.hookimpl(trylast=True)\n"
        "def pytest_runtest_logfinish(nodeid):\n"
        "    ended.append(nodeid)\n"
        "    if len(ended) == 2:\n"
        "        os._exit(9)\n"
    )
    code, content = run_benchmark(tmp_path, plugin)
    assert code == 9
    assert content["kind"] == "kernels"
    assert [result["op"] for result in content["results"]] == ["add_affine_relu"] * 2
    assert all(result["dtype"] == "float32" for result in content["results"])


def test_what_torch_compile_computes_wrong_has_no_speed_and_ours_has(tmp_path: Path) -> None:
    plugin = (
        "def compile(function, **_):\n"
        "    return lambda *inputs: [t * float('nan') for t in function(*inputs)]\n"
        "torch.compile = compile\n"
    )
    code, content = run_benchmark(tmp_path, plugin, "--first-stage")
    assert code == 0
    (result,) = content["results"]
    assert set(result["samples"]) == {"ours", "eager", "copy", "read"}
    assert "compile: expected result 0 within" in result["refused"]
