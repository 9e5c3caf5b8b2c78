"""How many processor cores this process may use."""

import os


def usable_cores() -> int:
    """Cores that this process is allowed to run on: fewer than the machine has in a container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
