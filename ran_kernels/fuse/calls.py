"""What the rewritten forwards call: the operators where they do the same, else the operations."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .. import backends, norms
from ..batch_norm import batch_norm_add_relu as fused_add_relu
from ..batch_norm import batch_norm_relu as fused_relu
from ..batch_norm_node import values_of
from ..parts import are_plain

norm_relu = norms.norm_relu


def norm_add_relu(norm: nn.Module, x: Any, shortcut: Any, in_place: bool) -> Any:
    """``relu(norm(x) + shortcut)``, or with `in_place` ``y = norm(x); y += shortcut; relu(y)``."""
    if _alike(x, shortcut):
        return norms.norm_add_relu(norm, x, shortcut)
    return _add_relu(norm(x), shortcut, in_place)


def add_norm_relu(norm: nn.Module, a: Any, b: Any) -> tuple[Any, Any]:
    """``a + b`` and ``relu(norm(a + b))``."""
    if _alike(a, b):
        return norms.add_norm_relu(norm, a, b)
    total = a + b
    return total, norms.norm_relu(norm, total)


def _add_relu(y: Any, shortcut: Any, in_place: bool) -> Any:
    if in_place:
        y += shortcut
    else:
        y = y + shortcut
    return F.relu(y)


def _alike(a: Any, b: Any) -> bool:
    """Whether a sum broadcasts nothing and has the dtype of both."""
    tensors = isinstance(a, Tensor) and isinstance(b, Tensor)
    return tensors and (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)


def batch_norm_relu(x: Tensor, *given: Any, **named: Any) -> Tensor:
    """``relu(torch.nn.functional.batch_norm(…))``, with its arguments."""
    options = _options(x, *given, **named)
    if options is None:
        return F.relu(F.batch_norm(x, *given, **named))
    return fused_relu(x, **options)


def batch_norm_add_relu(
    shortcut: Any, in_place: bool, x: Tensor, *given: Any, **named: Any
) -> Tensor:
    """As `norm_add_relu`, of ``torch.nn.functional.batch_norm(x, …)``, with its arguments."""
    options = _options(x, *given, **named) if _alike(x, shortcut) else None
    if options is None:
        return _add_relu(F.batch_norm(x, *given, **named), shortcut, in_place)
    return fused_add_relu(x, shortcut, **options)


def _options(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> dict[str, Any] | None:
    """The operators' arguments, None where PyTorch's own function must run."""
    if x.dim() != 4 or not are_plain(x, running_mean, running_var, weight, bias):
        return None
    if (training and values_of(x) == 1) or (running_mean is None and not training):
        return None  # PyTorch's says what is wrong
    if backends.choose("batch_norm", x) == "reference":
        return None
    return {
        "running_mean": running_mean,
        "running_var": running_var,
        "weight": weight,
        "bias": bias,
        "training": training,
        "momentum": momentum,
        "eps": eps,
    }
