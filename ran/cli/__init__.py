"""The command line: one file a command, thin over the Python functions that do the same."""

import os
import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from ..errors import UserError
from .bench import bench
from .eval import evaluate
from .export import export
from .info import info
from .masks import masks
from .models import models
from .predict import predict
from .train import train

# Wrong usage, whichever click typer brings: its own in newer versions.
_UsageError: Any = typer.BadParameter.__base__
#: Exit code of a program ended with Ctrl-C, as shells have it.
INTERRUPTED = 130


class _Group(TyperGroup):
    """Prints what the user can put right as one line on standard error and exits with code 2."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        if not options.pop("standalone_mode", True):
            return super().main(*arguments, **{**options, "standalone_mode": False})
        try:
            code = super().main(*arguments, **{**options, "standalone_mode": False})
            sys.stdout.flush()
        except BrokenPipeError:  # whoever reads, say `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
        except UserError as error:
            code = _fail("ran", str(error))
        except _UsageError as error:
            code = _report_usage(error)
        except OSError as error:  # of a file or disk that nothing above knew more about
            code = _fail("ran", " ".join(str(error).split()))
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's, of a GPU
                raise
            code = _fail("ran", "out of the GPU's memory: expected a smaller batch or image size")
        except (KeyboardInterrupt, typer.Abort):  # of which newer versions make an exit code
            code = INTERRUPTED
        if code == INTERRUPTED:
            typer.echo("ran: interrupted", err=True)
        sys.exit(code if isinstance(code, int) else 0)


def _report_usage(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # `ran` alone: its help, not a line
        error.show()
        return 2
    inside = error.ctx is not None and error.ctx.parent is not None
    path = f"ran {error.ctx.info_name}" if inside else "ran"
    message = " ".join(error.format_message().split()).rstrip(".")
    return _fail(path, f"{message} ({path} --help explains)")


def _fail(who: str, message: str) -> int:
    typer.echo(f"{who}: {message}", err=True)
    return 2


app = typer.Typer(
    cls=_Group,
    help="Residual attention networks and CBAM: train, evaluate, predict, see masks, export.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_show_locals=False,
)

_COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "masks": masks,
    "export": export,
    "models": models,
    "info": info,
    "bench": bench,
}
for name, command in _COMMANDS.items():
    app.command(name)(command)


def main() -> None:
    """The console script ``ran``."""
    app(prog_name="ran")
