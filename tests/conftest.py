"""What holds for every test: Triton's interpreter where there is no GPU, and fixed seeds."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# Read when torch is imported. pytest-xdist has a process for every core: with several threads in
# each they spend most of their time waiting for one another, busily. Tests of several threads ask
# for them (tests/kernels/test_guarantees.py, test_repeatability.py: the same bits by any number).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if TYPE_CHECKING:
    from ran.training.run import TrainingResult

if not torch.cuda.is_available():
    # Read when a kernel's module is imported, so it must be set before any test runs.
    os.environ["TRITON_INTERPRET"] = "1"
# Some versions of PyTorch refuse matrix products in deterministic mode without it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
if sys.platform == "linux":
    # A machine without a network still has itself.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

#: Markers of tests that are skipped unless asked for, and what keeps them out of every run.
ON_REQUEST = {
    "large": "needs tens of gigabytes",
    "deep": "traces deep networks for minutes",
    "emulate": "runs the CUDA kernels on the CPU for many minutes",
    "faults": "fails every file operation in turn for minutes",
    "fuzz": "makes 20,000 random calls, and some of them under the sanitizers",
    "tiles": "compiles every tile of every product for three GPUs, for an hour",
}


def pytest_configure(config: pytest.Config) -> None:
    for marker in ("deep", "emulate", "faults", "fuzz", "tiles"):
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


@pytest.fixture(autouse=True)
def _float32_is_float32() -> None:
    """No TF32 on GPUs, whose products are exact to three digits; by the names torch 2.11 knows."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> "TrainingResult":
    """A tiny network trained on digits. Its folder is for reading only."""
    from ran.training.run import train  # Lightning takes a while to load

    from .tiny import tiny_settings

    folder: Path = tmp_path_factory.mktemp("trained") / "run"
    return train(tiny_settings(folder, epochs=5))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network that knows cats and dogs no better than chance. For reading only."""
    from ran.data import Preprocessing
    from ran.weights.network_card import NetworkCard, save_network

    from .tiny import TINY_OPTIONS

    folder: Path = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    card = NetworkCard(
        "attention56_cifar_pool",
        ("cat", "dog"),
        Preprocessing(16, 1.0, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        TINY_OPTIONS,
    )
    save_network(card.build(), card, folder)
    return folder


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains on 96 digits, tests on 40 and draws nothing: accuracy is tested elsewhere."""
    import ran.training.run
    from ran.data import ImageData, load_data
    from ran.data.dataset import InMemory

    def load_few(*arguments: Any) -> ImageData:
        data = load_data(*arguments)
        return dataclasses.replace(
            data,
            train=InMemory(*data.train.__getitems__(range(96))),
            test=InMemory(*data.test.__getitems__(range(40))),
        )

    monkeypatch.setattr(ran.training.run, "load_data", load_few)
    monkeypatch.setattr(ran.training.run, "plot_curves", lambda *_, **__: None)
    monkeypatch.setattr(ran.training.run, "draw_test_masks", lambda *_: None)
