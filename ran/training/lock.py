"""One training at a time in a folder."""

import errno
import fcntl
import os
import platform
import threading
from contextlib import suppress
from pathlib import Path

from ..errors import UserError

#: In the folder of a training for as long as it runs, and after a kill. Says which process it is.
LOCK_FILE = ".lock"
#: What the system says where another process has the lock,
_TAKEN = (errno.EAGAIN, errno.EACCES)
#: and where the file system has no locks, as some network disks are mounted.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
#: (device, inode) of what this process holds: the system does not keep it from itself.
_held: set[tuple[int, int]] = set()
_holding = threading.Lock()


class FolderLock:
    """Keeps every other training out of a folder until it is left or its process ends.

    The system lets go of it when the process ends, however that happens; processes that this one
    started, to read images, do not have it. Of a training of several processes, the first holds it.

    On NFS the server holds it for the machine: other machines are kept out, and after a crash it is
    free once the machine is up again or, from version 4 on, the server has heard nothing from it
    for its lease (90 s, usually). Where the file system has no locks at all, nothing is guarded.

    Attributes:
        guards: False after ``take`` where the file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder.absolute() / LOCK_FILE
        self._file: int | None = None
        self.guards = True

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is None:
            return
        with _holding:
            _held.discard(_identity(os.fstat(self._file)))
            with suppress(
                OSError
            ):  # while it is held: who opened it meanwhile sees that it is gone
                self._path.unlink()
            os.close(self._file)
        self._file = None

    @property
    def held(self) -> bool:
        return self._file is not None

    def take(self) -> None:
        """Takes it, if it is not held already; the folder must be there.

        Raises UserError that names the process which has it, or where the folder is read-only.
        """
        if self._file is not None:
            return
        with _holding:
            while self._file is None:
                self._try()
        with suppress(OSError):  # on a full disk; it is a help, not the lock
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()} on {platform.node()}\n".encode(), 0)

    def _try(self) -> None:
        with suppress(OSError):
            # asked before it is opened: closing a file again frees what this process had locked
            if _identity(os.stat(self._path)) in _held:
                raise self._taken(f"{os.getpid()}, this one,")
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise UserError(
                f"{self._folder}: expected a folder to write in: {error.strerror}"
            ) from None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                who = os.pread(file, 200, 0).decode("utf-8", "replace")
                os.close(file)
                raise self._taken(" ".join(who.split()) or "(another)") from None
            if error.errno not in _NO_LOCKS:
                os.close(file)
                raise UserError(f"{self._folder}: cannot lock it: {error.strerror}") from None
            self.guards = False
        with suppress(OSError):
            if _identity(os.stat(self._path)) == _identity(os.fstat(file)):
                self._file = file
                _held.add(_identity(os.fstat(file)))
                return
        os.close(file)  # who had it removed the file just now

    def _taken(self, process: str) -> UserError:
        return UserError(
            f"{self._folder}: expected no other training in this folder, process {process} is "
            "writing it (wait for it, stop it, or take another --output)"
        )


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
