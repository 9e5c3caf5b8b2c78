"""Which backend runs, why another does not, and what `python -m ran_kernels` says of it."""

import os
import subprocess
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

import ran_kernels
from ran_kernels import backends, extension
from ran_kernels.__main__ import report


def test_unknown_backends_are_refused_by_name() -> None:
    with (
        pytest.raises(ValueError, match=r"backend: expected one of 'auto', .*, got 'cuda'"),
        ran_kernels.backend("cuda"),
    ):
        pass
    with pytest.raises(ValueError, match=r"backend: expected one of 'native'"):
        ran_kernels.can_run("fast", "attention_gate", torch.zeros(1))


def test_the_context_ends_with_the_block_even_after_an_error() -> None:
    before = backends.current()
    with ran_kernels.backend("reference"):
        assert backends.current() == "reference"
        with ran_kernels.backend("native"):
            assert backends.current() == "native"
        assert backends.current() == "reference"
    assert backends.current() == before
    with pytest.raises(ValueError, match="logits"), ran_kernels.backend("reference"):
        ran_kernels.attention_gate(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 1))
    assert backends.current() == before


def test_auto_takes_the_extension_on_the_cpu() -> None:
    assert extension.path is not None, extension.why_not
    with ran_kernels.backend("auto"):
        assert backends.choose("attention_gate", torch.zeros(1)) == "native"


@pytest.mark.parametrize("reason", ["no CUDA toolkit found", "RAN_CUDA=0"])
def test_cuda_tensors_without_cuda_kernels_are_told_once(
    monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    told = {"cuda": None, "cuda_reason": f"left out: {reason}"}
    monkeypatch.setattr(extension, "_info", told)
    extension.warn_of_no_cuda.cache_clear()
    on_a_gpu: Any = SimpleNamespace(device=torch.device("cuda", 0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            why = backends.can_run("native", "attention_gate", on_a_gpu)
            assert why == f"the extension was built without CUDA (left out: {reason})"
    extension.warn_of_no_cuda.cache_clear()
    said = [str(warning.message) for warning in caught]
    wanted = "Triton or PyTorch runs CUDA tensors: the CUDA kernels were left out: no CUDA toolkit"
    assert len(said) == (reason != "RAN_CUDA=0")
    assert all(wanted in text for text in said)


def test_auto_falls_back_to_the_reference_without_an_extension(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(extension, "path", None)
    monkeypatch.setattr(extension, "why_not", "it was left at home")
    t = torch.randn(1, 2, 3, 3)
    with ran_kernels.backend("auto"):
        assert backends.choose("attention_gate", t) == "reference"
        torch.testing.assert_close(ran_kernels.attention_gate(t, t), (1 + t.sigmoid()) * t)
    with (
        ran_kernels.backend("native"),
        pytest.raises(
            ran_kernels.BackendError,
            match=r"backend: 'native' cannot run attention_gate: it was left at home",
        ),
    ):
        ran_kernels.attention_gate(t, t)


def test_triton_refuses_cpu_tensors_outside_its_interpreter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reason = ran_kernels.can_run("triton", "attention_gate", torch.zeros(1))
    assert reason is not None
    assert "TRITON_INTERPRET" in reason


@pytest.mark.parametrize("name", ["native", "triton"])
def test_other_devices_go_to_the_reference(name: str) -> None:
    meta = torch.zeros(2, 3, 4, 4, device="meta")
    reason = ran_kernels.can_run(name, "attention_gate", meta)
    assert reason is not None
    assert "'meta'" in reason
    with ran_kernels.backend("auto"):
        assert ran_kernels.attention_gate(meta, meta).shape == meta.shape


def _sum_of_everything(x: torch.Tensor) -> torch.Tensor:
    gated = ran_kernels.attention_gate(x, x, activation="channel")
    mean, maximum = ran_kernels.channel_pool(ran_kernels.upsample_add(x, gated))
    maps = ran_kernels.spatial_pool(x, mean)
    return ran_kernels.cbam_gate(x, maximum, maps[:, :1], shortcut=gated).pow(2).sum()


@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap", "dual numbers"])
def test_function_transforms_run_on_the_reference(transform: str) -> None:
    x = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)

    def results() -> list[torch.Tensor]:
        if transform == "grad":
            return [torch.func.grad(_sum_of_everything)(x[0])]
        if transform == "jvp":
            return list(torch.func.jvp(_sum_of_everything, (x[0],), (x[1],)))
        if transform == "vmap":
            return [torch.func.vmap(_sum_of_everything)(x)]
        with forward_ad.dual_level():
            dual = _sum_of_everything(forward_ad.make_dual(x[0], x[1]))
            return list(forward_ad.unpack_dual(dual))

    with ran_kernels.backend("reference"):
        expected = results()
    assert all(t.abs().max() > 0 for t in expected)
    with ran_kernels.backend("auto"):
        torch.testing.assert_close(results(), expected, rtol=0, atol=0)
    with (
        ran_kernels.backend("native"),
        pytest.raises(ran_kernels.BackendError, match="forward-mode"),
    ):
        results()


def test_report_names_every_operator_with_its_backend() -> None:
    text = "\n".join(report())
    for heading in ("versions", "extension", "devices", "operators"):
        assert heading in text
    for op in ran_kernels.library.OPERATORS:
        assert op in text
    assert torch.__version__.split("+")[0] in text


@pytest.mark.parametrize(
    ("value", "expected"),
    [("reference", (0, "reference")), ("gpu", (1, "RAN_BACKEND: expected one of 'auto'"))],
)
def test_environment_variable(value: str, expected: tuple[int, str]) -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import ran_kernels; print(ran_kernels.backends.current())"],
        env={**os.environ, "RAN_BACKEND": value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == expected[0]
    assert expected[1] in run.stdout + run.stderr


@pytest.mark.parametrize("activation", ["mixed", "channel", "spatial"])
def test_auto_lets_inductor_fuse_what_it_fuses_better(activation: str) -> None:
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def look(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def gate(logits: torch.Tensor, trunk: torch.Tensor) -> torch.Tensor:
        return ran_kernels.attention_gate(logits, trunk, activation=activation)

    compiled = torch.compile(gate, fullgraph=True, backend=look)
    logits, trunk = torch.randn(2, 2, 8, 5, 5)
    with ran_kernels.backend("auto"):
        torch.testing.assert_close(compiled(logits, trunk), gate(logits, trunk))
    # Forced, it stays what was asked for.
    with ran_kernels.backend("native"):
        compiled(logits, trunk)
    auto, native = ("attention_gate" in graph.code for graph in graphs)
    assert auto == (activation != "spatial")
    assert native
