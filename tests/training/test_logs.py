"""The curves that TensorBoard shows, where a clock or a disk fails."""

import resource
import time
from pathlib import Path

import pytest

from ran.training.logs import CurveLog

accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def shown(folder: Path) -> list[tuple[int, float]]:
    events = accumulators.EventAccumulator(str(folder)).Reload().Scalars("loss")
    return [(event.step, event.value) for event in events]


def test_what_follows_on_a_clock_set_back_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    for hours, first in ((0, 0), (-1, 2), (-9, 4)):
        monkeypatch.setattr("ran.training.logs.time.time", lambda hours=hours: now + 3600 * hours)
        log = CurveLog(tmp_path, first)
        for step in range(first, first + 3):  # the last of them is done again by the next
            log.log_metrics({"loss": 10.0 * hours + step}, step)
        log.finalize("success")
    expected = [(0, 0.0), (1, 1.0), (2, -8.0), (3, -7.0), (4, -86.0), (5, -85.0), (6, -84.0)]
    assert shown(tmp_path) == expected


def test_a_full_disk_is_an_error_of_the_one_who_logs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = CurveLog(tmp_path, 0)
    log.log_metrics({"loss": 1.0}, 0)
    try:
        size = next(tmp_path.iterdir()).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
        with pytest.raises(OSError, match="File too large"):
            log.log_metrics({"loss": 2.0}, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    CurveLog(tmp_path, 1).log_metrics({"loss": 3.0}, 1)  # after the half of an event
    assert shown(tmp_path) == [(0, 1.0), (1, 3.0)]
    assert capfd.readouterr() == ("", "")
