"""Trainings that several files of tests stop, damage and resume."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ran
from tests.tiny import make_folder

from .everything import EVERYTHING, StopAfterStep

if TYPE_CHECKING:
    from ran.training.run import TrainingResult


@pytest.fixture
def no_pictures() -> Iterator[None]:
    """Pictures are tested elsewhere."""
    with without_pictures():
        yield


@contextmanager
def without_pictures() -> Iterator[None]:
    import ran.training.run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ran.training.run, "plot_curves", lambda *_, **__: None)
        patch.setattr(ran.training.run, "draw_test_masks", lambda *_: None)
        yield


@pytest.fixture(scope="session")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("pets") / "pets", count=17)


@pytest.fixture(scope="session")
def never_killed(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> "TrainingResult":
    folder = tmp_path_factory.mktemp("never")
    with without_pictures():
        return ran.train(**EVERYTHING, data=f"folder:{pets}", output=folder / "run")


@pytest.fixture
def stopped(no_pictures: None, pets: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of a training that was stopped after step 6 of 20, with a previous checkpoint."""
    settings = {
        **EVERYTHING,
        "data": f"folder:{pets}",
        "output": tmp_path / "run",
        "checkpoint_steps": 100,
    }
    with pytest.raises(SystemExit):
        ran.train(**settings, callbacks=[StopAfterStep(6)])
    return {**settings, "resume": True}
