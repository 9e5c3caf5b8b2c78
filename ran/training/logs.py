"""The curves that TensorBoard shows."""

import io
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

_NAME = "events.out.tfevents."


class CurveLog(Logger):
    """Writes what Lightning logs, as events of TensorBoard, each complete before it goes on.

    PyTorch's own writer has a thread, which prints a traceback where the disk is full, and names
    its file after the clock: TensorBoard reads a folder's files in the order of their names, so
    what follows on a clock set back would count as what came before. Here the name goes on.

    Args:
        folder: of the event files, one for each time the training was started.
        purge: step from which on what older files hold was written by a part of the training that
            is done again.

    Raises OSError where it cannot be written.
    """

    def __init__(self, folder: Path, purge: int) -> None:
        super().__init__()
        self._folder, self._purge = folder, purge
        self._file: io.FileIO | None = None

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return self._folder.name

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """They are in ``run.json``."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()
        ]
        self._write(step=step or 0, summary=Summary(value=values))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def _write(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = io.FileIO(self._new_path(), "x")
            self._write(file_version="brain.Event:2", step=self._purge)
            self._write(session_log=SessionLog(status=SessionLog.START), step=self._purge)
        self._append(Event(wall_time=time.time(), **fields).SerializeToString())

    def _append(self, record: bytes) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        assert self._file is not None
        framed = io.BytesIO()
        RecordWriter(framed).write(record)
        left = framed.getbuffer()
        while left:  # a file's write may take less than all
            left = left[self._file.write(left) or 0 :]

    def _new_path(self) -> Path:
        times = [path.name.removeprefix(_NAME)[:10] for path in self._folder.glob(f"{_NAME}*")]
        last = max((int(found) for found in times if found.isdecimal()), default=0)
        number = max(int(time.time()), last + 1)
        return self._folder / f"{_NAME}{number:010}.{platform.node()}.{os.getpid()}.0"
