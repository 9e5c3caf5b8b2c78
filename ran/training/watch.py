"""Whether the other processes of a training still answer."""

import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch.distributed as dist

from ..errors import UserError
from ..processes import Processes

#: Seconds between two signs of life, and the exit code of a process that waits for a lost one.
_BEAT, _CODE = 1.0, 2
#: Looks without one after which the other is named where the connection to it broke, and how often
#: it is looked at until then.
_FEW, _LOOKS = 3, 8
#: What a process leaves in place of its count when it is done, or fails and says why itself.
_DONE, _FAILED = b"done", b"failed"


class Watch(L.Callback):
    """Names the process that was lost, where several wait for each other in vain.

    A thread of each counts on in the store that torchrun keeps, and looks whether the others do:
    one that is stopped, dead or cut off does not, one that only computes for long does. After
    ``timeout`` seconds it ends this process, which may be waiting where no exception reaches it.

    Args:
        processes: all, and this one among them.
        timeout: in seconds.
        folder: of the training, which the message says how to go on with.
        before_exit: called before the process ends.
    """

    def __init__(
        self, processes: Processes, timeout: float, folder: Path, before_exit: Callable[[], None]
    ) -> None:
        self._processes, self._timeout, self._folder = processes, timeout, folder
        self._before_exit = before_exit
        self._store: Any = None
        self._thread: threading.Thread | None = None
        self._broken = False
        self._left = threading.Event()
        self._looked = threading.Condition()
        #: By rank: the last count seen, and the looks since it was new. A pause of this process
        #: itself, as between Ctrl-Z and fg, is one look, however long.
        self._seen: dict[int, tuple[bytes, int]] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._store is None and self._processes.count > 1:
            with suppress(KeyError, RuntimeError, ValueError):  # no torchrun's store: no watch
                self._store = self._connect()
                self._thread = threading.Thread(target=self._run, name="ran-watch", daemon=True)
                self._thread.start()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._broken = isinstance(exception, RuntimeError)

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Raises UserError for what PyTorch raises inside because another process is gone."""
        end = _FAILED
        before: Any = None
        if self._processes.count > 1:
            with suppress(ValueError):  # not the main thread
                before = signal.signal(signal.SIGTERM, self._on_sigterm)
        try:
            yield
            end = _DONE
        except RuntimeError:
            if (lost := self._find(_FEW, _LOOKS)) is None:
                raise
            raise UserError(self._message(lost, "the connection to it broke")) from None
        except SystemExit:  # all stop together
            end = _DONE
            raise
        finally:
            self._left.set()
            if self._thread is not None:
                self._thread.join()  # a process that ends while it is in the store aborts
            if self._store is not None:
                with suppress(RuntimeError):
                    self._store.set(str(self._processes.rank), end)
            if before is not None:
                signal.signal(signal.SIGTERM, before)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        # where one is lost, torchrun sends this to the others, which are about to say so
        if not self._broken:
            raise SystemExit(128 + number)

    def _connect(self) -> Any:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(
            host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=30)
        )
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        own = dist.PrefixStore(f"ran/{again}", store)
        own.set(f"who/{self._processes.rank}", f"{os.getpid()} on {platform.node()}")
        own.set(str(self._processes.rank), "0")
        return own

    def _run(self) -> None:
        count = 0
        while not self._left.wait(_BEAT):
            count += 1
            with suppress(RuntimeError):  # torchrun itself may be stopped: no sign is no verdict
                self._store.set(str(self._processes.rank), str(count))
                self._look()
            lost = self._find(self._timeout / _BEAT)
            if lost is not None and not self._left.wait(_BEAT):
                self._end(self._message(lost, f"no answer for {self._timeout:g} s (timeout)"))

    def _look(self) -> None:
        with self._looked:
            for rank in range(self._processes.count):
                if rank == self._processes.rank or not self._store.check([str(rank)]):
                    continue  # not there yet: PyTorch has a limit of its own for that
                value = bytes(self._store.get(str(rank)))
                before, silent = self._seen.get(rank, (b"", 0))
                self._seen[rank] = value, silent + 1 if value == before else 0
            self._looked.notify_all()

    def _find(self, silent: float, looks: int = 0) -> int | None:
        """The rank of a process without a sign for ``silent`` looks, after up to ``looks`` more."""
        with self._looked:
            for more in range(looks, -1, -1):
                for rank, (value, since) in sorted(self._seen.items()):
                    if value != _DONE and (since >= silent or (looks and value == _FAILED)):
                        return rank
                if more:
                    self._looked.wait(2 * _BEAT)
        return None

    def _message(self, rank: int, why: str) -> str:
        who = "?"
        with suppress(RuntimeError):
            who = bytes(self._store.get(f"who/{rank}")).decode()
        state = _state(who) or why
        if self._seen[rank][0] == _FAILED:
            state = "it failed, and says why itself"
        return (
            f"process {rank} of {self._processes.count} ({who}): {state}; once it is gone, the "
            f"same command with --resume goes on from the last checkpoint in {self._folder}"
        )

    def _end(self, message: str) -> None:
        self._before_exit()
        print(f"ran: {message}", file=sys.stderr, flush=True)
        os._exit(_CODE)


def _state(who: str) -> str:
    """What the system says of a process of this machine; nothing of one that seems to run."""
    process, _, host = who.partition(" on ")
    if host != platform.node() or not process.isdecimal():
        return ""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return "" if Path(f"/proc/{process}").exists() else "it has ended"
    return {"T": "it is stopped", "t": "it is stopped", "Z": "it has ended"}.get(state, "")
