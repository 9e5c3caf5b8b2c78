"""What a run does that its results do not show: the tensors it saves and the operators it calls."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode


def saved_by(run: Callable[[], Any]) -> list[Tensor]:
    """Every tensor that the graph of run() saves for the backward, in order."""
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        run()
    return saved


def kept_by(run: Callable[[], Any]) -> list[Tensor]:
    """Of those that `saved_by` has, the last one of each storage."""
    return list({t.untyped_storage().data_ptr(): t for t in saved_by(run)}.values())


class Calls(TorchDispatchMode):
    """Counts calls by operator, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))
