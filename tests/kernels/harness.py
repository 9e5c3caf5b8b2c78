"""What every operator's tests share: the places it can run, layouts, and how exact it must be."""

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import ran_kernels

from ..emulator import build
from ..emulator.place import emulated

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Place:
    """A backend on a device; with `emulated`, the CUDA kernels on tensors of the CPU."""

    backend: str
    device: str
    emulated: bool = False

    def __str__(self) -> str:
        return f"{self.backend}-{'emulated' if self.emulated else self.device}"

    @property
    def compiler(self) -> str:
        """Of torch.compile here: Inductor, which takes seconds, once for each kind of kernel."""
        return "inductor" if self.backend == "native" and not self.emulated else "aot_eager"

    @property
    def interpreted(self) -> bool:
        """Whether Triton's interpreter runs here, where a call takes a tenth of a second."""
        return (self.backend, self.device) == ("triton", "cpu")

    def share(self, cases: Sequence[Any], *turn: int, of: int = 2) -> Sequence[Any]:
        """The cases, or one in `of` where a call takes a tenth of a second.

        Args:
            turn: the numbers of a test's other arguments. Their sum says which comes first, so that
                every two of all the arguments still meet.
        """
        slow = self.interpreted or self.emulated
        return cases[sum(turn) % of :: of] if slow else cases

    def gradcheck(self, op: Callable[..., Any], leaves: Sequence[Tensor | None]) -> bool:
        """`torch.autograd.gradcheck`, of every element, or in the interpreter of random sums."""
        fast = self.interpreted
        return bool(self.run(torch.autograd.gradcheck, op, leaves, fast_mode=fast))

    def run(self, op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """op(*args, **kwargs) on this backend."""
        with emulated() if self.emulated else nullcontext(), ran_kernels.backend(self.backend):
            return op(*args, **kwargs)


#: The CUDA C++ kernels through their real launchers and tensor side; see tests/emulator.
EMULATED = pytest.param(
    Place("native", "cpu", emulated=True),
    id="native-emulated",
    marks=pytest.mark.skipif(bool(why := build.missing()), reason=str(why)),
)


def _places() -> list[Any]:
    no_interpreter = pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1",
        reason="Triton runs CPU tensors in its interpreter, which is off where a GPU is found",
    )
    return [
        pytest.param(Place("reference", "cpu"), id="reference-cpu"),
        pytest.param(Place("native", "cpu"), id="native-cpu"),
        EMULATED,
        pytest.param(Place("triton", "cpu"), id="triton-cpu", marks=no_interpreter),
        pytest.param(Place("native", "cuda"), id="native-cuda", marks=pytest.mark.gpu),
        pytest.param(Place("triton", "cuda"), id="triton-cuda", marks=pytest.mark.gpu),
    ]


#: Decorates a test that takes `place`: every backend on every device of this machine.
everywhere = pytest.mark.parametrize("place", _places())
#: The same without the reference, for tests that compare with it.
kernels = pytest.mark.parametrize("place", _places()[1:])
#: For what is checked of operators as they are registered, where the emulated kernels have no part.
registrations = pytest.mark.parametrize(
    "place", [place for place in _places()[1:] if place is not EMULATED]
)
#: Triton alone, for an operator that has no native kernels.
triton_only = pytest.mark.parametrize(
    "place", [place for place in _places() if place.values[0].backend == "triton"]
)


def _sliced(t: Tensor) -> Tensor:
    """Every second column of a tensor twice as wide, starting at an odd element."""
    wide = torch.full((*t.shape[:-1], 2 * t.shape[-1] + 1), torch.nan, dtype=t.dtype)
    view = wide.to(t.device)[..., 1::2]
    return view.copy_(t)


#: Ways to lay out the same values. The dense permuted ones catch what slices alone do not.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "batch_inside": lambda t: t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "sliced": _sliced,
}


def relative_error(got: Tensor, exact: Tensor) -> float:
    """L2 norm of the error over the L2 norm of the exact result (or 1 where that is 0)."""
    exact = exact.double()
    scale = exact.norm().item() or 1.0
    return (got.double() - exact).norm().item() / scale


def outputs_and_grads(
    op: Callable[..., Any], inputs: Sequence[Tensor | None], **kwargs: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """op's outputs, and the gradients of its inputs for a fixed, uneven incoming gradient."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    result = op(*leaves, **kwargs)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    incoming = []
    for output in outputs:
        wave = torch.linspace(-2.0, 3.0, output.numel(), dtype=torch.float64).cos()
        # Rounded to bfloat16, so that every dtype is given exactly the same gradient.
        wave = wave.to(torch.bfloat16).reshape(output.shape)
        incoming.append(wave.to(output.dtype).to(output.device))
    wanted = [leaf for leaf in leaves if leaf is not None]
    grads = torch.autograd.grad(outputs, wanted, incoming)
    return [output.detach() for output in outputs], list(grads)


#: What opcheck has to look at in an operator that is itself a derivative.
OF_DERIVATIVES = ("test_schema", "test_faketensor")


def check_against_reference(
    place: Place,
    op: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Sequence[Tensor | None],
    **kwargs: Any,
) -> None:
    """Asserts that outputs and gradients are as exact as the house demands.

    float64: 1e-12 of the norm; float32: 1e-5; 16-bit: at most twice (gradients: three times) the
    error that PyTorch itself makes in that dtype, against the reference in float64.
    """
    dtype = next(t.dtype for t in inputs if t is not None)
    doubles = [None if t is None else t.double() for t in inputs]
    exact, exact_grads = outputs_and_grads(reference, doubles, **kwargs)
    got, got_grads = place.run(outputs_and_grads, op, inputs, **kwargs)
    eager, eager_grads = outputs_and_grads(reference, inputs, **kwargs)
    _require_exact("output", got, eager, exact, dtype, 2.0)
    _require_exact("gradient", got_grads, eager_grads, exact_grads, dtype, 3.0)


def check_outputs(
    place: Place,
    op: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Sequence[Tensor],
) -> None:
    """`check_against_reference` of the outputs alone, for operators without a derivative."""
    exact = _listed(reference(*(t.double() for t in inputs)))
    got = _listed(place.run(op, *inputs))
    _require_exact("output", got, _listed(reference(*inputs)), exact, inputs[0].dtype, 2.0)


def _listed(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def _require_exact(
    label: str,
    ours: Sequence[Tensor],
    theirs: Sequence[Tensor],
    true: Sequence[Tensor],
    dtype: torch.dtype,
    factor: float,
) -> None:
    assert len(ours) == len(true)
    for index, (a, b, c) in enumerate(zip(ours, theirs, true, strict=True)):
        assert a.shape == c.shape
        assert a.dtype == dtype
        limit = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype)
        if limit is None:
            # Where PyTorch happens to be exact, half a unit in the last place is still allowed.
            limit = max(factor * relative_error(b, c), torch.finfo(dtype).eps / 2)
        error = relative_error(a, c)
        assert error <= limit, f"{label} {index}: error {error:.3g} over {limit:.3g}"
