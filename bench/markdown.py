"""What the documents' tables share."""


def line(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"
