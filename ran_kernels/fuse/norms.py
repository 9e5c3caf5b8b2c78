"""Batch normalisation with its ReLU in somebody's model, as one node."""

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .following import kind_of
from .forwards import made_for, take_off
from .pairs import NORMS
from .readers import UnusualError


def fuse_norms(model: nn.Module, fused: dict[str, list[str]], left: dict[str, str]) -> None:
    """Puts another class over that of each module whose own forward holds such a pair.

    Args:
        fused: gets the names of the modules for which that is new, and of their pairs.
        left: gets the names of the modules in which something stays, and why.
    """
    plan: list[tuple[nn.Module, type[nn.Module]]] = []
    for name, module in model.named_modules():
        if not _holds_norms(module):
            continue
        try:
            made, pairs, reasons = made_for(module)
        except UnusualError as reason:
            made, pairs, reasons = None, [], [str(reason)]
        if reasons:
            left[name] = "; ".join(reasons)
        if made is not None and made is not type(module):
            plan.append((module, made))
            fused[name] = pairs
    for module, made in plan:
        take_off(module)
        module.__class__ = made


def unfuse(model: nn.Module) -> list[str]:
    """Gives the modules of `model` their own forwards back, where ``fuse(norms=True)`` fused some.

    Attention modules stay replaced.

    Returns:
        The names of these modules.

    Raises:
        TypeError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a module, got {type(model).__name__}")
    return [name for name, module in model.named_modules() if take_off(module)]


def _holds_norms(module: nn.Module) -> bool:
    """Whether the forward of `module` itself may normalise."""
    base = kind_of(module)
    known = str(base.forward.__module__).startswith(("torch.", "ran_kernels."))
    if known and base.forward is not nn.Sequential.forward:
        return False
    if isinstance(module, _BatchNorm):
        return True  # with an activation in it, as timm's
    return any(type(part) in NORMS for part in _at_hand(module))


def _at_hand(module: nn.Module) -> Iterator[nn.Module]:
    """The children of `module`, and those of lists and dicts of modules among them."""
    for part in module.children():
        yield part
        if type(part) in (nn.ModuleList, nn.ModuleDict):
            yield from _at_hand(part)
