"""Temporary modes of a network, undone on the way out."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, each module's own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        # Not model.train(): a module may be frozen in evaluation mode while the rest trains.
        for module, training in modes:
            module.training = training


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    # A norm that does not track still normalises by the batch while it trains. One in evaluation
    # mode needs its running statistics and never writes them.
    norms = [norm for norm in norms if norm.training]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def recompute_contexts(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a checkpointed block's forward and of its recomputation in the backward.

    The recomputation must not count the batch into the running statistics a second time.
    """
    return nullcontext(), _frozen_statistics(block)
