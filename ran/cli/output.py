"""What commands print for programs."""

import json
import sys
from typing import Any

import typer

from ..text import json_text


def print_json(content: Any) -> None:
    """JSON in the characters of what is printed to: escapes where its encoding lacks one."""
    text = json_text(content)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(content, indent=2)
    typer.echo(text)
