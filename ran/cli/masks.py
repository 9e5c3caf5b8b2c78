"""``ran masks``."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from .arguments import Device, Overwrite

_CHECKPOINT_SUFFIXES = (".ckpt", ".safetensors")


def masks(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="CHECKPOINT IMAGE",
            help="A checkpoint (folder of a training, its model.safetensors, or a .ckpt file), or "
            "with --gif several in order, then image files.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Picture to write: .png, .pdf, .svg, .gif, …")
    ],
    gif: Annotated[
        bool,
        typer.Option(
            "--gif",
            help="Animate the masks over several checkpoints, or over those that a training kept: "
            "--set keep_every=EPOCHS.",
        ),
    ] = False,
    modules: Annotated[
        str, typer.Option(help="Only attention modules with such names, as 'stages.2.*'.")
    ] = "*",
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> None:
    """Draw what each attention module does to images.

    For each module: its mask over the image, and single channels before, in and after the mask;
    for CBAM the spatial gate, the channel gates, and the channels with the highest gates.

    Example: ran masks runs/demo digit.png -o masks.png

    Example: ran masks runs/demo/best.ckpt runs/demo/last.ckpt digit.png --gif -o masks.gif
    """
    count = 1
    while count < len(paths) and _is_checkpoint(paths[count]):
        count += 1
    if count > 1 and not gif:
        raise UserError(f"{paths[1]}: expected an image, or --gif to animate several checkpoints")
    if gif and output.suffix.lower() != ".gif":
        raise UserError(f"{output}: expected a name that ends in .gif")
    if count == len(paths):
        raise UserError("IMAGE: expected at least one image file after the checkpoint")
    from ..files import stopping_cleanly
    from ..pictures.masks import plot_masks

    with stopping_cleanly():
        plot_masks(
            paths[:count],
            paths[count:],
            output,
            modules=modules,
            overwrite=overwrite,
            device=device,
        )
    typer.echo(f"Written: {output}")


def _is_checkpoint(path: Path) -> bool:
    return path.is_dir() or path.suffix in _CHECKPOINT_SUFFIXES
