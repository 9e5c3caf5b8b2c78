"""``ran masks``."""

from pathlib import Path
from typing import Annotated

import typer

from .arguments import Checkpoint, Device, Images


def masks(
    checkpoint: Checkpoint,
    images: Images,
    output: Annotated[Path, typer.Option("--output", "-o", help="New picture to write.")],
    device: Device = "auto",
) -> None:
    """Draw attention masks over images. Example: ran masks runs/demo digit.png -o masks.png"""
    from ..masks import draw_masks

    draw_masks(checkpoint, images, output, device=device)
    typer.echo(f"Written: {output}")
