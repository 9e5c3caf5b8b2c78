"""``ran models``."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..errors import UserError


def models(
    pattern: Annotated[str, typer.Argument(help="Names to print, such as 'cbam_*'.")] = "*",
) -> None:
    """Print the networks: size, cost, and the error their authors published.

    Example: ran models "cbam_*"
    """
    from fnmatch import fnmatch

    from ..models.catalogue import catalogue

    rows = [row for row in catalogue() if fnmatch(row.name, pattern)]
    if not rows:
        raise UserError(f"pattern: expected one that fits a network's name, got {pattern!r}")
    # A name that is cut short is of no use to anyone, and pipes are as wide as narrow terminals.
    table = Table(box=None, pad_edge=False)
    for title in ("name", "parameters", "multiply-adds", "input"):
        table.add_column(title, no_wrap=True)
    table.add_column("published error, %")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.parameters:,}",
            f"{row.multiply_adds / 1e9:.3f} G",
            "×".join(map(str, row.input_size)),
            "\n".join(map(str, row.published)),
        )
    Console().print(table)
