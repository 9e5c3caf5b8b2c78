"""What the rewritten forwards call: the operators where they do the same, else the operations."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .. import backends, norms
from ..batch_norm import batch_norm_relu as fused
from ..parts import are_plain

norm_relu = norms.norm_relu


def norm_add_relu(norm: nn.Module, x: Any, shortcut: Any, in_place: bool) -> Any:
    """``relu(norm(x) + shortcut)``, or with `in_place` ``y = norm(x); y += shortcut; relu(y)``."""
    if _alike(x, shortcut):
        return norms.norm_add_relu(norm, x, shortcut)
    y = norm(x)
    if in_place:
        y += shortcut
    else:
        y = y + shortcut
    return F.relu(y)


def add_norm_relu(norm: nn.Module, a: Any, b: Any) -> tuple[Any, Any]:
    """``a + b`` and ``relu(norm(a + b))``."""
    if _alike(a, b):
        return norms.add_norm_relu(norm, a, b)
    total = a + b
    return total, norms.norm_relu(norm, total)


def _alike(a: Any, b: Any) -> bool:
    """Whether a sum broadcasts nothing and has the dtype of both."""
    tensors = isinstance(a, Tensor) and isinstance(b, Tensor)
    return tensors and (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)


def batch_norm_relu(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``relu(torch.nn.functional.batch_norm(…))``, with its arguments."""
    channels = (running_mean, running_var, weight, bias)
    plain = x.dim() == 4 and are_plain(x, *channels) and not backends.exporting()
    single = x.dim() == 4 and x.shape[0] * x.shape[2] * x.shape[3] == 1
    if plain and not (training and single) and backends.choose("batch_norm", x) != "reference":
        options = {"training": training, "momentum": momentum, "eps": eps}
        return fused(x, *channels, **options)  # type: ignore[arg-type]
    return F.relu(F.batch_norm(x, *channels, training, momentum, eps))
