"""Temporary modes of a network, undone on the way out."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..checks import require_choice


def norm_conv_wanted() -> bool:
    """What RAN_NORM_CONV asks for, "1" or "0"."""
    wanted = os.environ.get("RAN_NORM_CONV", "0")
    require_choice("RAN_NORM_CONV", ("0", "1"), wanted)
    return wanted == "1"


#: Whether networks' 1×1 convolutions take the norms before them in, unless `create_model` is told.
NORM_CONV = norm_conv_wanted()


def set_norm_conv(model: nn.Module, enable: bool | None) -> None:
    """Let the units of `model` take norms into 1×1 convolutions; None: as they are.

    Raises ValueError where it is none of these.
    """
    require_choice("norm_conv", (None, False, True), enable)
    if enable is not None:
        _set_in_units(model, "norm_conv", enable)


def _set_in_units(model: nn.Module, name: str, value: bool) -> None:
    for module in model.modules():
        if hasattr(type(module), name):
            setattr(module, name, value)


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
    # With momentum 0 a norm still normalises by the batch and still hands its running statistics
    # to autograd, as the recomputation must, but leaves them as they are.
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    states = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # None is 0 where no batches are counted; a number would call another implementation.
        norm.momentum = None if norm.momentum is None else 0.0
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, states, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = batches


def _recompute_contexts(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a checkpointed block's forward and of its recomputation in the backward.

    The recomputation must not count the batch into the running statistics a second time.
    """
    return nullcontext(), _frozen_statistics(block)


def stored(block: nn.Module, forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``forward(*inputs)``: what ``checkpointed`` stands in for."""
    return forward(*inputs)


def checkpointed(block: nn.Module, forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``forward(*inputs)``, whose norms are in ``block``, computed again in the backward.

    Until then the inputs alone are stored.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    # A compiled graph writes running statistics once, outside what it recomputes, and takes no
    # contexts.
    if not is_compiling():
        options["context_fn"] = partial(_recompute_contexts, block)
    return checkpoint(forward, *inputs, **options)


def set_recomputing(model: nn.Module, enable: bool | str) -> bool:
    """Let the units of `model` compute normalised activations again where `enable` is "norms".

    Returns whether they are to be computed again as a whole, which is True. Raises ValueError, and
    changes nothing, where it is neither "norms" nor a bool.
    """
    require_choice("enable", (False, True, "norms"), enable)
    _set_in_units(model, "recompute_norms", enable == "norms")
    return bool(enable) and enable != "norms"
