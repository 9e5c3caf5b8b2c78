"""Batch normalisation with its ReLU in somebody's model, as one node."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .forwards import Outcome, outcome_of, take_off
from .pairs import NORMS, has_own_forward, may_end
from .readers import UnusualError


def fuse_norms(model: nn.Module, fused: dict[str, list[str]], left: dict[str, str]) -> None:
    """Puts another class over that of each module whose own forward holds such a pair.

    Args:
        fused: gets the names of the modules for which that is new, and of their pairs.
        left: gets the names of the modules in which something stays, and why.
    """
    plan: list[tuple[nn.Module, type[nn.Module]]] = []
    known: dict[type, list[Outcome]] = {}
    for name, module in model.named_modules():
        if not (_normalises(module) or _may_add(module)):
            continue
        try:
            outcome = outcome_of(module, known)
        except UnusualError as reason:
            if _normalises(module):
                left[name] = str(reason)
            continue
        if outcome.left:
            left[name] = "; ".join(outcome.left)
        if outcome.cls is not None and outcome.cls is not type(module):
            plan.append((module, outcome.cls))
            fused[name] = list(outcome.fused)
    for module, made in plan:
        take_off(module)
        module.__class__ = made


def unfuse(model: nn.Module) -> list[str]:
    """Gives the modules of `model` their own forwards back, where ``fuse(norms=True)`` fused some.

    Attention modules stay replaced, and what another class was put over since stays fused.

    Returns:
        The names of these modules.

    Raises:
        TypeError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a module, got {type(model).__name__}")
    return [name for name, module in model.named_modules() if take_off(module)]


def _normalises(module: nn.Module) -> bool:
    """Whether the forward of `module` itself normalises, as far as its parts tell."""
    if isinstance(module, torch.jit.ScriptModule):
        names = [getattr(part, "original_name", "") for part in module.children()]
        return any(kind.__name__ in names for kind in NORMS)
    if not has_own_forward(module):
        return False
    if isinstance(module, _BatchNorm):
        return True  # with an activation in it, as timm's
    return any(type(part) in NORMS for part in _at_hand(module))


def _may_add(module: nn.Module) -> bool:
    """Whether a part of `module` may end in a normalisation that belongs to a ReLU outside it."""
    scripted = isinstance(module, torch.jit.ScriptModule)
    return not scripted and has_own_forward(module) and any(map(may_end, _at_hand(module)))


def _at_hand(module: nn.Module) -> Iterator[nn.Module]:
    """The children of `module`, and those of lists and dicts of modules among them."""
    for part in module.children():
        yield part
        if type(part) in (nn.ModuleList, nn.ModuleDict):
            yield from _at_hand(part)
