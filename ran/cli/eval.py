"""``ran eval``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..text import plural, printable
from .arguments import BatchSize, Checkpoint, Data, Device, Overwrite, SkipUnreadable
from .output import print_json

if TYPE_CHECKING:
    from ..evaluation.scores import Evaluation

DEFAULT_PICTURE = Path("confusion.png")


def evaluate(
    checkpoint: Checkpoint,
    data: Data,
    size: Annotated[
        int | None,
        typer.Option(help="Side in pixels of what the network sees; as trained if not given."),
    ] = None,
    tta: Annotated[
        str, typer.Option(help="none, or flip: the mean of an image and its mirror image.")
    ] = "none",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    confusion: Annotated[
        Path | None,
        typer.Option(help="Picture of the confusion matrix to write; confusion.png if not given."),
    ] = None,
    picture: Annotated[
        bool, typer.Option("--picture/--no-picture", help="Whether to write that picture.")
    ] = True,
    overwrite: Overwrite = False,
    skip_unreadable: SkipUnreadable = False,
    test_split: Annotated[
        str, typer.Option(help="Of timm's readers: the name of the part to test on.")
    ] = "validation",
    num_classes: Annotated[
        int | None, typer.Option(help="Of timm's readers, where the set does not say it.")
    ] = None,
    batch_size: BatchSize = 64,
    device: Device = "auto",
) -> None:
    """Count how many test images a network classifies right.

    Prints top-1 and top-5 accuracy, a table of all classes and images/s, and draws the confusion
    matrix.

    Example: ran eval runs/demo --data digits --confusion runs/confusion.png
    """
    from ..evaluation.evaluation import evaluate as run_evaluation
    from ..files import stopping_cleanly

    drawn = (confusion or DEFAULT_PICTURE) if picture else None
    # Nobody asked for that name: the last evaluation's picture is no reason to refuse this one.
    if drawn and not confusion and drawn.exists() and not overwrite:
        typer.echo(f"{drawn} exists and stays: --overwrite or --confusion draws another", err=True)
        drawn = None
    with stopping_cleanly():
        evaluation = run_evaluation(
            checkpoint,
            data,
            image_size=size,
            tta=tta,
            confusion=drawn,
            overwrite=overwrite,
            device=device,
            batch_size=batch_size,
            skip_unreadable=skip_unreadable,
            test_split=test_split,
            num_classes=num_classes,
            progress=True,
        )
    if as_json:
        print_json(evaluation.to_json())
        return
    _print(evaluation)
    if drawn:
        typer.echo(f"Written: {drawn}")


def _print(evaluation: "Evaluation") -> None:
    console = Console(markup=False, emoji=False)
    table = Table("class", "images", "right", "precision", "most often taken for")
    for column in table.columns[1:4]:
        column.justify = "right"
    for number in (0, 4):
        table.columns[number].overflow = "fold"  # not cut short, as names may begin alike
    for score in evaluation.classes():
        table.add_row(
            printable(score.name),
            f"{score.images:,}",
            _share(score.accuracy),
            _share(score.precision),
            printable(score.confused_with or ""),
        )
    console.print(table)
    tta = "" if evaluation.tta == "none" else f", with {evaluation.tta}"
    lines: tuple[str, ...] = (
        f"{evaluation.model} on {evaluation.data} at {evaluation.image_size}×"
        f"{evaluation.image_size}{tta}: {plural(evaluation.images, 'image')}",
        f"top-1 {evaluation.top1:.2%}, top-5 {evaluation.top5:.2%}",
        f"{evaluation.images_per_second:,.0f} images/s with reading, {evaluation.seconds:.1f} s",
    )
    if evaluation.unreadable:
        lines += (f"{plural(evaluation.unreadable, 'unreadable image')} left out",)
    for line in lines:
        console.print(printable(line), highlight=False, soft_wrap=True)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"
