"""What a training says before it runs."""

from rich.console import Console

from .checkpoints import processes_of
from .engine import Engine


def printable(text: str) -> str:
    """One line of UTF-8, which a file's name need not be."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n")


def say(console: Console, text: str) -> None:
    """Prints a line as it is: a name may hold what rich takes for markup."""
    console.print(printable(text), markup=False, emoji=False, highlight=False, soft_wrap=True)


def print_summary(console: Console, engine: Engine, parameters: int) -> None:
    """The network, its data, where it runs, and what it goes on from."""
    data, settings = engine.data, engine.settings
    size, channels = data.preprocessing.image_size, data.preprocessing.channels
    where = (
        str(engine.device)
        if engine.processes.count == 1
        else (
            f"{engine.processes.count} processes on {engine.processes.machines} machines, "
            f"{engine.device.type}"
        )
    )
    text = (
        f"{settings.model} ({parameters:,} parameters) on {data.name}: "
        f"{len(data.train):,} training and {len(data.test):,} test images of "
        f"{channels}×{size}×{size}, {len(data.class_names)} classes; {where}, {engine.precision}"
    )
    say(console, text)
    if data.unreadable.found:
        found, first = data.unreadable.found, data.unreadable.first
        say(console, f"{found:,} unreadable images left out, first {first}")
    if engine.checkpoint:
        text = f"going on from {engine.checkpoint}"
        then, now = processes_of(engine.checkpoint), engine.processes.count
        if then not in (None, now):  # each draws its own random numbers, and normalises its share
            text += f", which {then} processes trained; with {now} the bits will be others"
        say(console, text)
