"""The command line: one file a command, thin over the Python functions that do the same."""

from typing import Any

import typer
from typer.core import TyperGroup

from ..errors import UserError
from .masks import masks
from .models import models
from .predict import predict
from .train import train


class _Group(TyperGroup):
    """Prints a UserError as one line and exits with code 2, as for wrong usage."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.echo(f"ran: {error}", err=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=_Group,
    help="Residual attention networks: train, predict and see their masks.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_show_locals=False,
)

for command in (train, predict, masks, models):
    app.command()(command)


def main() -> None:
    """The console script ``ran``."""
    app(prog_name="ran")
