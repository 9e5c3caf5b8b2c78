"""Which of several processes this one is, as ``torchrun`` tells each, and the cores it may use."""

import os
from dataclasses import dataclass

from .errors import UserError


@dataclass(frozen=True)
class Processes:
    """The processes of a training, and this one among them.

    Attributes:
        rank: of this one, from 0; number 0 writes and speaks.
        count: of all machines.
        local_rank: among those of this machine.
        local_count: of this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    @property
    def machines(self) -> int:
        return self.count // self.local_count


def find_processes() -> Processes:
    """What the environment says: torchrun's variables, or one process where there are none.

    Raises:
        UserError: the machines have different numbers of processes.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Processes()
    found = Processes(
        rank=int(os.environ["RANK"]),
        count=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ["LOCAL_RANK"]),
        local_count=int(os.environ["LOCAL_WORLD_SIZE"]),
    )
    if found.count % found.local_count:
        raise UserError(
            f"processes: expected equally many on each machine, got {found.count} with "
            f"{found.local_count} here"
        )
    return found


def usable_cores() -> int:
    """Cores that this process is allowed to run on: fewer than the machine has in a container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
