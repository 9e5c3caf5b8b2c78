import dataclasses
from pathlib import Path
from typing import Any

import pytest

import ran.training
from ran.data import ImageData, load_data
from ran.data.dataset import InMemory
from ran.training import TrainingResult, train

from .helpers import tiny_settings


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """A tiny network trained on digits. Its folder is for reading only."""
    folder: Path = tmp_path_factory.mktemp("trained") / "run"
    return train(tiny_settings(folder, epochs=5))


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains on 96 digits, tests on 40 and draws nothing: accuracy is tested elsewhere."""

    def load_few(*arguments: Any) -> ImageData:
        data = load_data(*arguments)
        return dataclasses.replace(
            data,
            train=InMemory(*data.train.__getitems__(range(96))),
            test=InMemory(*data.test.__getitems__(range(40))),
        )

    monkeypatch.setattr(ran.training, "load_data", load_few)
    monkeypatch.setattr(ran.training, "plot_curves", lambda *_, **__: None)
    monkeypatch.setattr(ran.training, "draw_test_masks", lambda *_: None)
