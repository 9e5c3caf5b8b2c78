"""The command line: one file a command, thin over the Python functions that do the same."""

import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import typer
from typer.core import TyperGroup

from ..errors import DefaultsWarning, UserError
from ..text import printable
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
#: And as nobody reads on what it prints, as rich and click have it.
UNREAD = 1


class _Group(TyperGroup):
    """Prints what the user can put right as one line on standard error and exits with code 2."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        if not options.pop("standalone_mode", True):
            return super().main(*arguments, **{**options, "standalone_mode": False})
        _prepare_streams()
        with warnings.catch_warnings():
            _tell_defaults()
            code = self._run(*arguments, **options)
        sys.exit(code if isinstance(code, int) else 0)

    def _run(self, *arguments: Any, **options: Any) -> Any:
        """What the command ends with: an exit code, or something else for success."""
        try:
            given = options.get("args", arguments[0] if arguments else None)
            _refuse_empty(sys.argv[1:] if given is None else given)
            code = super().main(*arguments, **{**options, "standalone_mode": False})
            sys.stdout.flush()  # while a full disk can still be told
        except BrokenPipeError:  # `ran models | head`
            _forget_output()
            code = UNREAD
        except UserError as error:
            code = _fail("ran", str(error))
        except _UsageError as error:
            code = _report_usage(error)
        except OSError as error:  # of a file or disk that nothing above knew more about
            _forget_output()
            code = _fail("ran", " ".join(str(error).split()))
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's, of a GPU
                raise
            code = _fail("ran", "out of the GPU's memory: expected a smaller batch or image size")
        except (KeyboardInterrupt, typer.Abort):  # of which newer versions make an exit code
            code = INTERRUPTED
        if code == INTERRUPTED:
            typer.echo("ran: interrupted", err=True)
        return code


def _prepare_streams() -> None:
    """A name that the terminal's encoding lacks is written with escapes, and is no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Lines of Pillow's own source, of metadata that nobody asked for
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _tell_defaults() -> None:
    """Has what was taken by default said as the command line speaks; other warnings as before."""
    show = warnings.showwarning

    def tell(message: Any, category: Any, *place: Any, **more: Any) -> None:
        if issubclass(category, DefaultsWarning):
            typer.echo(f"ran: {printable(str(message))}", err=True)
        else:
            show(message, category, *place, **more)

    warnings.simplefilter("always", DefaultsWarning)
    warnings.showwarning = tell


def _forget_output() -> None:
    """Drops what could not be written: Python would try again at its end, with a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Raises UserError for "", which a script's unset variable leaves, and a path takes for ".".

    Options of a single word, such as --output= with nothing behind it, are the same.
    """
    for before, word in zip(["", *arguments], arguments, strict=False):
        name, equals, value = word.partition("=")
        if not word:
            raise UserError(f"{before or 'ran'}: expected a value after it, got an empty one")
        if equals and not value and name.startswith("-"):
            raise UserError(f"{name}: expected a value after it, got an empty one")


def _report_usage(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # `ran` alone: its help, not a line
        error.show()
        return 2
    inside = error.ctx is not None and error.ctx.parent is not None
    path = f"ran {error.ctx.info_name}" if inside else "ran"
    message = " ".join(error.format_message().split()).rstrip(".")
    return _fail(path, f"{message} ({path} --help explains)")


def _fail(who: str, message: str) -> int:
    typer.echo(f"{who}: {printable(message)}", err=True)
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


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ran {metadata.version('ran-attention')}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False,
        "--version",
        is_eager=True,
        callback=_print_version,
        help="Print the version and exit.",
    ),
) -> None:
    pass


def main() -> None:
    """The console script ``ran``."""
    app(prog_name="ran")
