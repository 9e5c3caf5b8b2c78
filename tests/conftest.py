"""What holds for every test: Triton's interpreter where there is no GPU, and fixed seeds."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    # Read when a kernel's module is imported, so it must be set before any test runs.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "large" not in config.getoption("-m"):
        skip = pytest.mark.skip(reason="needs tens of gigabytes: ask for it with -m large")
        for item in items:
            if item.get_closest_marker("large"):
                item.add_marker(skip)
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device, and torch finds none")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
