"""``ran train``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..processes import find_processes
from ..text import plural, printable
from ..training.settings import TrainingSettings, make_settings
from .arguments import SkipUnreadable, TrainingData

if TYPE_CHECKING:
    from ..training.run import TrainingResult


def _default(name: str) -> str:
    """The default of a setting, in brackets behind its help text."""
    return f" ({getattr(TrainingSettings, name)})"


def train(
    recipe: Annotated[
        str | None, typer.Argument(help="Settings with a name, see --list; options override them.")
    ] = None,
    list_all: Annotated[
        bool, typer.Option("--list", help="Print the recipes, or one with its settings, and end.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="Such as attention56_cifar_pool.")] = None,
    data: TrainingData = None,
    epochs: Annotated[
        int | None, typer.Option(help=f"Passes over the training images{_default('epochs')}.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help=f"Images in a step, over all processes{_default('batch_size')}."),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help=f"Learning rate at its peak{_default('lr')}.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help=f"Fixes every random number{_default('seed')}.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any other setting, as a recipe's file writes it: --set mixup=1.0, "
            "--set model_options.width_multiplier=0.5; may be repeated.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="New folder to write; runs/MODEL-DATA if not given.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output folder of an earlier training.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the training in the output folder exactly where it stopped; start it "
            "if there is none. With --output alone, its settings are taken from there; with more "
            "--epochs it goes on, finished or not.",
        ),
    ] = False,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch cifar10, cifar100 or a reader's set.")
    ] = False,
    skip_unreadable: SkipUnreadable = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, 32, bf16-mixed, 16-mixed or 64.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Processor cores that compute; all if not given.")
    ] = None,
) -> None:
    """Train a network. Example: ran train digits --epochs 5 --set ema=0.99"""
    from ..training.recipes import combine, parse_overrides

    if list_all:
        _print_recipes(recipe)
        return
    given = {
        "model": model,
        "data": data,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "output": output,
        "overwrite": overwrite or None,
        "resume": resume or None,
        "download": download or None,
        "skip_unreadable": skip_unreadable or None,
        "device": device,
        "precision": precision,
        "threads": threads,
    }
    options = {name: value for name, value in given.items() if value is not None}
    overrides = parse_overrides(settings or [])

    if resume and output and not recipe and not model:
        from ..training.runs import saved_values

        checked = make_settings({**saved_values(output), **options, **overrides})
    else:
        checked = make_settings(combine(recipe, options, overrides))

    from ..training.run import train as run_training  # after the check: it takes seconds to load

    console = Console(quiet=not find_processes().first, markup=False, emoji=False)
    result = run_training(checked, console)
    _print_result(console, result)


def _print_recipes(name: str | None) -> None:
    from ..training.recipes import list_recipes, load_recipe

    console = Console()
    if name:
        recipe = load_recipe(name)
        console.print(f"{recipe.about}\nsource: {recipe.source}", highlight=False, soft_wrap=True)
        for key, value in recipe.settings.items():
            console.print(f"{key} = {value!r}", highlight=False, soft_wrap=True)
        return
    table = Table("recipe", "what it is", "source")
    for entry in map(load_recipe, list_recipes()):
        table.add_row(entry.name, entry.about, entry.source)
    console.print(table)


def _print_result(console: Console, result: "TrainingResult") -> None:
    from ..training.summary import say

    title = printable(str(result.folder))
    table = Table("", "epoch", "test accuracy", "test loss", "train loss", title=title)
    for name, row in (("best", result.best), ("last", result.last)):
        table.add_row(
            name,
            str(row["epoch"]),
            f"{row['test_accuracy']:.2%}",
            f"{row['test_loss']:.4f}",
            f"{row['train_loss']:.4f}",
        )
    console.print(table)
    text = (
        f"{plural(len(result.rows), 'epoch')} in {result.last['seconds']:.0f} s. The best epoch is "
        "chosen by its accuracy on the test images, the last is not."
    )
    if result.unreadable:
        text += f" {plural(result.unreadable, 'unreadable image')} left out."
    console.print(text, highlight=False, soft_wrap=True)
    written = ", ".join(sorted(path.name for path in result.folder.iterdir()))
    say(console, f"Written to {result.folder}: {written}")
