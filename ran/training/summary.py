"""What a training says before it runs."""

from rich.console import Console

from ..text import plural, printable
from .checkpoints import processes_of
from .engine import Engine


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
            f"{plural(engine.processes.count, 'process')} on "
            f"{plural(engine.processes.machines, 'machine')}, "
            f"{engine.device.type}"
        )
    )
    text = (
        f"{settings.model} ({plural(parameters, 'parameter')}) on {data.name}: "
        f"{plural(len(data.train), 'training image')} and {plural(len(data.test), 'test image')} "
        f"of {channels}×{size}×{size}, {plural(len(data.class_names), 'class')}; {where}, "
        f"{engine.precision}"
    )
    say(console, text)
    if data.unreadable.found:
        found, first = data.unreadable.found, data.unreadable.first
        say(console, f"{plural(found, 'unreadable image')} left out, first {first}")
    if engine.checkpoint:
        text = f"going on from {engine.checkpoint}"
        then, now = processes_of(engine.checkpoint), engine.processes.count
        if then not in (None, now):  # each draws its own random numbers, and normalises its share
            trained = plural(then or 0, "process")
            text += f", which {trained} trained; with {now} the bits will be others"
        say(console, text)
