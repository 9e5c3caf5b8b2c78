"""``ran predict``."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..errors import UserError
from ..text import plural, printable
from .arguments import BatchSize, Checkpoint, Deploy, Device, Overwrite, SkipUnreadable
from .output import print_json

if TYPE_CHECKING:
    from ..evaluation.prediction import Prediction


def predict(
    checkpoint: Checkpoint,
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE|FOLDER",
            help="Image files, and folders with image files at any depth. Of an animation, and of "
            "a file of several pages, the first picture counts.",
        ),
    ],
    topk: Annotated[int, typer.Option(help="Classes to print for each image.")] = 5,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: a list with an object for each image.")
    ] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV: image, rank, class, probability.")
    ] = False,
    masks: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write a picture of each image's attention masks there."),
    ] = None,
    overwrite: Overwrite = False,
    skip_unreadable: SkipUnreadable = False,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    deploy: Deploy = True,
) -> None:
    """Print the most probable classes of images.

    Example: ran predict runs/demo photos/ digit.png --topk 3 --csv
    """
    if as_json and as_csv:
        raise UserError("--csv: expected one of --json and --csv, got both")
    from ..evaluation.prediction import predict as predict_images
    from ..files import stopping_cleanly

    with stopping_cleanly():
        predictions = predict_images(
            checkpoint,
            images,
            topk=topk,
            masks=masks,
            overwrite=overwrite,
            device=device,
            batch_size=batch_size,
            skip_unreadable=skip_unreadable,
            deploy=deploy,
        )
    write = _write_json if as_json else _write_csv if as_csv else _print_table
    write(predictions)
    if errors := [prediction.error for prediction in predictions if prediction.error]:
        # beside the output, in which a program that reads CSV expects rows alone
        count = plural(len(errors), "unreadable image")
        typer.echo(f"{count} left out, first {printable(errors[0])}", err=True)


def _write_json(predictions: "Sequence[Prediction]") -> None:
    content = [
        {
            "image": str(prediction.path),
            "classes": [
                {"class": name, "probability": probability}
                for name, probability in prediction.classes
            ],
            **({"error": prediction.error} if prediction.error else {}),
        }
        for prediction in predictions
    ]
    print_json(content)


def _write_csv(predictions: "Sequence[Prediction]") -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("image", "rank", "class", "probability"))
    for prediction in predictions:
        for rank, (name, probability) in enumerate(prediction.classes, start=1):
            writer.writerow((prediction.path, rank, name, f"{probability:.6f}"))


def _print_table(predictions: "Sequence[Prediction]") -> None:
    table = Table()
    for title in ("image", "class"):
        table.add_column(title, overflow="fold")  # not cut short, as paths begin alike
    table.add_column("probability", no_wrap=True)
    for prediction in predictions:
        for rank, (name, probability) in enumerate(prediction.classes):
            last = rank == len(prediction.classes) - 1
            path = printable(str(prediction.path)) if rank == 0 else ""
            table.add_row(path, printable(name), f"{probability:.2%}", end_section=last)
    Console(markup=False, emoji=False).print(table)
