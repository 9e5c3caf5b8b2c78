"""What became of every tensor of a checkpoint and of a model."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..text import plural

#: How many names an error lists of each kind.
LISTED = 3
#: With more names than these, it counts the modules that they are in, of which it lists so many.
GROUPED, GROUPS = 20, 6
#: How the reasons begin that name a tensor or a shape, and what they have in common.
ABSENT, SHAPE = "the checkpoint has no ", "expected shape "
_KINDS = {ABSENT: "the checkpoint does not have them", SHAPE: "of another shape"}


@dataclass(frozen=True)
class LoadReport:
    """What :func:`ran.load_checkpoint` did. ``str(report)`` is a summary of a few lines."""

    source: str
    """Whose names the checkpoint has: a key of ``ran.weights.sources.SOURCES``."""
    loaded: tuple[str, ...]
    """The model's tensors that took a tensor of the checkpoint."""
    adapted: dict[str, str]
    """Of the model's tensors, those not equal to the checkpoint's: by name, what was done."""
    left: dict[str, str]
    """The model's tensors that are as they were: by name, why."""
    ignored: dict[str, str]
    """The checkpoint's tensors that its own network does not use, or that stand outside the prefix
    of the network's names: by name, why."""
    unexpected: tuple[str, ...]
    """The checkpoint's tensors that the model has no place for."""

    def __str__(self) -> str:
        lines = [f"{plural(len(self.loaded), 'tensor')} loaded from {self.source} names"]
        for title, reasons in (
            ("adapted", self.adapted),
            ("left as they were", self.left),
            ("ignored", self.ignored),
        ):
            common = _common(reasons)
            for reason in dict.fromkeys(common.values()):
                names = [name for name, why in common.items() if why == reason]
                lines.append(f"{len(names)} {title} ({reason}): {listed(names)}")
        if self.unexpected:
            lines.append(f"{len(self.unexpected)} unexpected: {listed(self.unexpected)}")
        return "\n".join(lines)


@dataclass
class Differences:
    """What keeps a checkpoint from filling a model."""

    missing: list[str] = field(default_factory=list)
    """Names of tensors, as the checkpoint would call them."""
    unexpected: list[str] = field(default_factory=list)
    shapes: dict[str, str] = field(default_factory=dict)
    """By the checkpoint's name, what was expected and what came."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes)

    def __str__(self) -> str:
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} missing: {listed(self.missing)}")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} unexpected: {listed(self.unexpected)}")
        if self.shapes:
            shapes = [f"{name} expected {what}" for name, what in self.shapes.items()]
            told = listed(shapes if len(shapes) <= GROUPED else [*self.shapes])
            parts.append(f"{len(self.shapes)} of another shape: {told}")
        return "; ".join(parts)


def listed(names: list[str] | tuple[str, ...]) -> str:
    """The first few names, and that there are more; of many, how many are in which modules."""
    if len(names) > GROUPED:
        return _grouped(names)
    return ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")


def _grouped(names: list[str] | tuple[str, ...]) -> str:
    """The names' modules, at the least depth at which there are several."""
    deepest = max(name.count(".") for name in names) + 1
    for depth in range(1, deepest + 1):
        counts = Counter(".".join(name.split(".")[:depth]) for name in names)
        if len(counts) > 1:
            break
    modules = [f"{module} ({count})" for module, count in counts.items()]
    return ", ".join(modules[:GROUPS]) + (", …" if len(modules) > GROUPS else "")


def _common(reasons: Mapping[str, str]) -> dict[str, str]:
    """The reasons, but for what several of a kind have in common where they are many."""
    common = dict(reasons)
    for start, what in _KINDS.items():
        of_kind = {name: why for name, why in reasons.items() if why.startswith(start)}
        if len(set(of_kind.values())) > LISTED:
            common |= dict.fromkeys(of_kind, what)
    return common


def shapes_differ(expected: Tensor, got: Tensor) -> str:
    """Two shapes in words, for ``Differences.shapes``."""
    return f"{tuple(expected.shape)}, got {tuple(got.shape)}"
