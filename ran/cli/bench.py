"""``ran bench``."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError

#: What is measured, by the program that measures it. Each has options of its own.
PROGRAMS = {
    "kernels": ("pytest", "bench/kernels"),
    "networks": ("bench.networks.speed",),
    "memory": ("bench.networks.memory",),
    "traffic": ("bench.networks.traffic",),
    "fuse": ("bench.networks.fuse",),
    "scale": ("bench.networks.scale",),
    "deploy": ("bench.networks.deploy",),
    "ablation": ("bench.ablation",),
    "ceilings": ("bench.ceilings",),
}
_ROOT = Path(__file__).parents[2]


def bench(
    what: Annotated[str, typer.Argument(help=f"{', '.join(PROGRAMS)}.")],
    options: Annotated[
        list[str] | None, typer.Argument(help="Options of that benchmark; --help prints them.")
    ] = None,
) -> None:
    """Measure the machine at hand. Needs a checkout of the sources.

    Example: ran bench kernels -- --op CBAM --batch 8
    """
    if what not in PROGRAMS:
        raise UserError(f"what: expected one of {', '.join(PROGRAMS)}, got {what!r}")
    if not (_ROOT / "bench" / "kernels").is_dir():
        raise UserError(
            "bench: expected a checkout of the sources, installed with `pip install -e .`; "
            f"{_ROOT} has no folder bench"
        )
    command = [sys.executable, "-m", *PROGRAMS[what], *(options or [])]
    raise typer.Exit(subprocess.run(command, cwd=_ROOT, check=False).returncode)
