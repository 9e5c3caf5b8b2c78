"""``ran export``."""

from pathlib import Path
from typing import Annotated

import typer

from .arguments import Checkpoint, Deploy, Overwrite


def export(
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, .onnx or .pt2.")],
    size: Annotated[
        int | None,
        typer.Option(help="Side in pixels of the images it takes; as trained if not given."),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(help="Image to check the file with, instead of photographs; may be repeated."),
    ] = None,
    overwrite: Overwrite = False,
    deploy: Deploy = True,
    aoti: Annotated[
        bool,
        typer.Option(
            "--aoti",
            help="Compile the .pt2 with AOTInductor, for aoti_load_package, with our kernels.",
        ),
    ] = False,
) -> None:
    """Write a network for ONNX Runtime (.onnx) or for torch.export.load (.pt2).

    The file needs nothing of this package, but the library of its kernels with --aoti. It is
    checked against the network on real images.

    Example: ran export runs/demo -o digits.onnx
    """
    from ..files import stopping_cleanly
    from ..serving.export import export as run_export

    with stopping_cleanly():
        report = run_export(
            checkpoint,
            output,
            images=image or (),
            image_size=size,
            overwrite=overwrite,
            deploy=deploy,
            aoti=aoti,
        )
    batches = " and ".join(map(str, report.batches))
    typer.echo(
        f"Written: {report.path} ({report.path.stat().st_size / 1e6:.1f} MB). Checked on batches "
        f"of {batches} images: logits off by {report.error:.1e} of their norm from exact ones, the "
        f"network's own by {report.network_error:.1e}."
    )
    if report.library is not None:
        typer.echo(f"A process loads {report.library} before it: torch.ops.load_library or dlopen.")
