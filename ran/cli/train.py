"""``ran train``."""

import ast
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..errors import UserError
from ..settings import TrainingSettings


def _default(name: str) -> str:
    """The default of a setting, in brackets behind its help text."""
    return f" ({getattr(TrainingSettings, name)})"


def train(
    recipe: Annotated[
        str | None, typer.Argument(help="Named settings, such as demo; options override them.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Such as attention56_cifar_pool.")] = None,
    data: Annotated[str | None, typer.Option(help="digits, or folder:PATH.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help=f"Passes over the training images{_default('epochs')}.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help=f"Learning rate at its peak{_default('lr')}.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help=f"Images in a step{_default('batch_size')}.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help=f"Fixes every random number{_default('seed')}.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="New folder to write; runs/MODEL-DATA if not given.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output folder of an earlier training.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, 32, bf16-mixed, 16-mixed or 64.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Processor cores that compute; all if not given.")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Side in pixels of what the network sees; the model's usual if not given."
        ),
    ] = None,
    augmentation: Annotated[
        str | None, typer.Option(help="auto, none, shift, shift-flip or scale-flip.")
    ] = None,
    warmup_epochs: Annotated[
        float | None,
        typer.Option(help=f"In which the rate rises to its peak{_default('warmup_epochs')}."),
    ] = None,
    momentum: Annotated[
        float | None, typer.Option(help=f"Nesterov's{_default('momentum')}.")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help=f"Of every parameter{_default('weight_decay')}.")
    ] = None,
    label_smoothing: Annotated[
        float | None,
        typer.Option(
            help=f"Share of the target given to all classes{_default('label_smoothing')}."
        ),
    ] = None,
    model_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Such as width_multiplier=0.5; may be repeated."),
    ] = None,
) -> None:
    """Train a network. Example: ran train --model attention56_cifar_pool --data digits"""
    given = {
        "model": model,
        "data": data,
        "epochs": epochs,
        "lr": lr,
        "batch_size": batch_size,
        "seed": seed,
        "output": output,
        "overwrite": overwrite,
        "device": device,
        "precision": precision,
        "threads": threads,
        "image_size": image_size,
        "augmentation": augmentation,
        "warmup_epochs": warmup_epochs,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "label_smoothing": label_smoothing,
    }
    model_options = dict(_key_and_value(option) for option in model_option or [])

    from ..recipes import load_recipe

    settings = load_recipe(recipe) if recipe else {}
    settings |= {name: value for name, value in given.items() if value is not None}
    settings["model_options"] = {**settings.get("model_options", {}), **model_options}
    for name in ("model", "data"):
        if name not in settings:
            raise UserError(f"{name}: expected --{name} or a recipe, got neither")

    checked = TrainingSettings(**settings)

    from ..training import train as run_training  # after the check: it takes seconds to load

    console = Console()
    result = run_training(checked, console)
    table = Table("", "epoch", "test accuracy", "test loss", "train loss", title=str(result.folder))
    for name, row in (("best", result.best), ("last", result.last)):
        table.add_row(
            name,
            str(row["epoch"]),
            f"{row['test_accuracy']:.2%}",
            f"{row['test_loss']:.4f}",
            f"{row['train_loss']:.4f}",
        )
    console.print(table)
    seconds = result.last["seconds"]
    console.print(
        f"{len(result.rows)} epochs in {seconds:.0f} s. The best epoch is chosen by its accuracy "
        "on the test images, the last is not.",
        highlight=False,
        soft_wrap=True,
    )
    written = ", ".join(sorted(path.name for path in result.folder.iterdir()))
    console.print(f"Written to {result.folder}: {written}", highlight=False, soft_wrap=True)


def _key_and_value(option: str) -> tuple[str, Any]:
    """``KEY=VALUE`` as a pair; VALUE is a Python literal (number, list, True) or else a string."""
    key, equals, text = option.partition("=")
    if not equals or not key.isidentifier() or not text:
        raise UserError(f"model-option: expected KEY=VALUE, got {option!r}")
    try:
        return key, ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return key, text
