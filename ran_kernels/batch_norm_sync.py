"""Batch normalisation's statistics across processes: one message forwards, one backwards."""

from typing import Any

import torch
from torch import Tensor, distributed


def shared(process_group: Any) -> Any:
    """`process_group`, or None where it is None or has one process."""
    if process_group is None or distributed.get_world_size(process_group) == 1:
        return None
    return process_group


def merge_statistics(
    mean: Tensor, variance: Tensor, count: int, process_group: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance, and the number of values, of all processes' batches together.

    Args:
        mean, variance: (C,), of this process's `count` values; 0 where there are none.

    Returns:
        (C,) and (C,) in the dtype of `mean`, and the count as a float64 scalar.
    """
    own = torch.cat([mean, variance, mean.new_tensor([count])]).double()
    gathered = [torch.empty_like(own) for _ in range(distributed.get_world_size(process_group))]
    distributed.all_gather(gathered, own, group=process_group)
    means, variances, counts = torch.stack(gathered).split([len(mean), len(mean), 1], dim=1)
    total = counts.sum()
    merged = (counts * means).sum(0) / total
    # Squared deviations from the common mean: those from each part's own, and the parts' from it.
    squares = (counts * (variances + (means - merged).square())).sum(0)
    return merged.to(mean.dtype), (squares / total).to(mean.dtype), total


def mean_sums(
    sum_grad: Tensor, sum_grad_xhat: Tensor, total: Tensor, process_group: Any
) -> tuple[Tensor, Tensor]:
    """Both (C,) added up over all processes, over the number of values."""
    sums = torch.cat([sum_grad, sum_grad_xhat])
    distributed.all_reduce(sums, group=process_group)
    first, second = (sums / total.to(sums.dtype)).chunk(2)
    return first, second


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError("batch_norm: synchronised statistics can be differentiated once")


def differentiated_once(*grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients whose own derivative, which would take all processes' values, raises an error."""
    return tuple(t if t is None or not t.requires_grad else _Once.apply(t) for t in grads)
