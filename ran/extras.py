"""What a small install leaves out, told where it is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager

#: The modules that `pip install 'ran-attention[train]'` adds; pyproject.toml has their packages.
TRAIN = ("lightning", "torchmetrics", "tensorboard", "sklearn", "matplotlib", "typer", "rich",
         "tomli")  # fmt: skip


class MissingExtraError(ImportError):
    """Says in one line which package is missing and how to install it."""


@contextmanager
def needed_by(who: str) -> Iterator[None]:
    """Raises MissingExtraError where what is imported in the block needs the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in TRAIN:
            raise
        raise MissingExtraError(
            f"{who}: expected {package} to be installed: pip install 'ran-attention[train]'",
            name=error.name,
        ) from error
