"""Arguments that several commands take, and what a shell completes them to."""

from pathlib import Path
from typing import Annotated

import typer


def _devices(incomplete: str) -> list[str]:
    return [name for name in ("auto", "cpu", "cuda", "cuda:0") if name.startswith(incomplete)]


def _data(incomplete: str) -> list[str]:
    kinds = ("digits", "cifar10:", "cifar100:", "folder:", "imagenet:", "wds/", "hfds/")
    return [kind for kind in kinds if kind.startswith(incomplete)]


Checkpoint = Annotated[
    Path, typer.Argument(help="Folder of a training, its model.safetensors, or a .ckpt file.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", autocompletion=_devices)]
_DATA = (
    "digits, cifar10:PATH, cifar100:PATH, folder:PATH or imagenet:PATH (with train/CLASS/ and "
    "test/CLASS/ or val/CLASS/ in it; imagenet is not read through first), or by timm's readers "
    "wds/NAME:PATH or hfds/NAME"
)
Data = Annotated[str, typer.Option(help=f"Whose test images: {_DATA}.", autocompletion=_data)]
TrainingData = Annotated[str | None, typer.Option("--data", help=f"{_DATA}.", autocompletion=_data)]
BatchSize = Annotated[int, typer.Option(help="Images computed at once.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is there under the names to write.")
]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave damaged images out and count them.")
]
Deploy = Annotated[
    bool,
    typer.Option(
        "--deploy/--no-deploy",
        help="Batch normalisation folded into the convolutions, or layer by layer, to compare.",
    ),
]
