"""Arguments that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[
    Path, typer.Argument(help="Folder of a training, its model.safetensors, or a .ckpt file.")
]
Images = Annotated[list[Path], typer.Argument(help="Image files.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
