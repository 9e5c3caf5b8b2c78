"""``ran predict``."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .arguments import Checkpoint, Device, Images


def predict(
    checkpoint: Checkpoint,
    images: Images,
    topk: Annotated[int, typer.Option(help="Classes to print for each image.")] = 5,
    device: Device = "auto",
) -> None:
    """Print the most probable classes of images. Example: ran predict runs/demo digit.png"""
    from ..prediction import predict as predict_images

    table = Table("image", "class", "probability")
    for prediction in predict_images(checkpoint, images, topk=topk, device=device):
        for rank, (name, probability) in enumerate(prediction.classes):
            last = rank == len(prediction.classes) - 1
            path = str(prediction.path) if rank == 0 else ""
            table.add_row(path, name, f"{probability:.2%}", end_section=last)
    Console().print(table)
