"""What the tests of the benchmarks share."""

from functools import partial

import pytest

import ran


@pytest.fixture
def few_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """CBAM's networks of few channels: without instructions for bfloat16 others take minutes."""
    made = partial(ran.create_model, channels=(32, 32, 64, 64))
    monkeypatch.setattr(ran, "create_model", made)
