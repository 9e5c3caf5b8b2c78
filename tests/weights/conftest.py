"""A network in a folder, for the tests of loading."""

from pathlib import Path

import pytest

import ran

from .tiny import tiny


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    ran.save_pretrained(tiny(), tmp_path)
    return tmp_path
