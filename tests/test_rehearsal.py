"""What the rehearsal of the GPU tests notes, compiles and adds up."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ran_kernels
from tests import rehearsal

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter, of the CPU"
)
def test_what_the_interpreter_launches_is_compiled_for_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    monkeypatch.setattr(interpreter.InterpretedFunction, "run", interpreter.InterpretedFunction.run)
    recorder = rehearsal.Recorder(tmp_path)
    recorder.watch()
    x = torch.randn(2, 3, 5, 7)
    with ran_kernels.backend("triton"):
        for logits in (x, x.half().float()):  # the same kernel twice
            ran_kernels.attention_gate(logits, x)
        ran_kernels.attention_gate(x.half(), x.half())
    recorder.seconds = {"test_a[native-cpu]": 1.0, "test_a[triton-cpu]": 60.0}
    recorder.write()
    _, launches = rehearsal.recorded(tmp_path)
    names, arguments = zip(*map(json.loads, launches), strict=True)
    assert names == ("attention_gate.attention_gate_kernel",) * 2
    assert [given["logits"] for given in arguments] == ["*fp16", "*fp32"]

    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.rehearsal", "compile", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    compiled = json.loads((tmp_path / "compiled.json").read_text())
    assert len(compiled) == 2
    assert all(seconds > 0 for seconds in compiled.values())
    # The twin of an interpreted test takes what the native one does, and its kernels' compilation.
    expected = rehearsal.START + (1 + 1 + sum(compiled.values())) / rehearsal.PROCESSES
    assert rehearsal.tests(tmp_path) == pytest.approx(expected)


def test_a_call_that_is_too_long_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "build.seconds").write_text("150.0 10.0\n")
    monkeypatch.setattr(rehearsal, "tests", lambda folder: 410.0)
    monkeypatch.setattr(rehearsal, "kernels", lambda records, options: 150.0)
    assert not rehearsal.estimate(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "build: 20 s of 300: fits",
        "test: 410 s of 400: does not fit, and is cut",
    ]
    assert "networks: not rehearsed yet" in lines
    assert lines[-1] == (
        "call 1 (build, test, ceilings, kernels): 600 s of 570: "
        "does not fit; what is cut goes on when called again, 2 times in all"
    )
    # Of what must be whole nothing may be cut.
    monkeypatch.setattr(rehearsal, "tests", lambda folder: 390.0)
    monkeypatch.setattr(rehearsal, "networks", lambda records: 2000.0)
    assert rehearsal.estimate(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("call 1 (build, test, ceilings, kernels): 580 s of 570")
    assert lines[-1].endswith("goes on when called again, 4 times in all")
    monkeypatch.setattr(rehearsal, "build", lambda records: 200.0)
    assert not rehearsal.estimate(tmp_path)
    assert "760 s of 570: does not fit\n" in capsys.readouterr().out


def test_the_sanitizers_are_kept_to_this_librarys_kernels(tmp_path: Path) -> None:
    """With the programs of a GPU's machine played by scripts that print what they are given."""
    for name, text in {
        "python": 'case "$1" in -c) echo 9.0 ;; *) echo "ran: $*" ;; esac',
        # As long as the real one's, which a reader who has found the word does not wait for.
        "compute-sanitizer": '[ "$1" = --help ] && yes -- --kernel-regex | head -n 20000\n'
        'echo "ran: $*"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHON": str(tmp_path / "python")}
    environment["OUT"] = str(tmp_path / "out")
    command = [str(ROOT / "tools/gpu.sh"), "sanitize"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    log = (tmp_path / "out/gpu.log").read_text()
    for tool in ("memcheck", "racecheck"):
        assert f"ran: --tool {tool} --error-exitcode 9 --kernel-regex kns=3ran" in log
    assert done.returncode == 0, done.stdout
