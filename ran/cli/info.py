"""``ran info``."""

from pathlib import Path
from typing import Annotated

import typer


def info(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(help="Folder of a training, its model.safetensors, or a .ckpt file."),
    ] = None,
) -> None:
    """Print versions, devices and backends, or what a checkpoint is.

    Example: ran info runs/demo
    """
    from .description import describe, installation

    if checkpoint is None:
        for line in installation():
            typer.echo(line)
        return
    for name, value in describe(checkpoint).items():
        typer.echo(f"{name:<16}{value}")
