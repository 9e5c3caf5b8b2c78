"""The same bits in many runs, whatever the number of threads."""

import pytest
import torch

import ran_kernels

from .cbam_cases import NATIVE_LAYOUTS
from .operators import CALLS

RUNS = 50
# Enough for several threads, and sizes that 2, 3 and 5 do not divide.
SHAPE = (3, 67, 23, 29)


@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize("name", [name for name, case in CALLS.items() if not case.triton_alone])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_fifty_runs(name: str, layout: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The convolution between CBAM's operators is cuDNN's, which adds in any order unless told.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    torch.use_deterministic_algorithms(False)  # without poison: this is about time, not memory
    case = CALLS[name]
    inputs = case.inputs(SHAPE, device=device, layout=layout)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ran_kernels.backend("native"):
            first = case.results(case.op, inputs)
            for run in range(RUNS):
                torch.set_num_threads((2, 3, 5, 1, 4)[run % 5])
                again = case.results(case.op, inputs)
                for a, b in zip(first, again, strict=True):
                    assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)
