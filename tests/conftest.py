"""What holds for every test: Triton's interpreter where there is no GPU, and fixed seeds."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    # Read when a kernel's module is imported, so it must be set before any test runs.
    os.environ["TRITON_INTERPRET"] = "1"


#: Markers of tests that are skipped unless asked for, and what keeps them out of every run.
ON_REQUEST = {
    "large": "needs tens of gigabytes",
    "deep": "traces deep networks for minutes",
    "emulate": "runs the CUDA kernels on the CPU for many minutes",
}


def pytest_configure(config: pytest.Config) -> None:
    for marker in ("deep", "emulate"):
        config.addinivalue_line("markers", f"{marker}: {ON_REQUEST[marker]}; run with -m {marker}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for marker, reason in ON_REQUEST.items():
        if marker in config.getoption("-m"):
            continue
        skip = pytest.mark.skip(reason=f"{reason}: ask for it with -m {marker}")
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(skip)
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device, and torch finds none")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
