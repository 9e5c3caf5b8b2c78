"""What the benchmarks of inference need of a network, and ask of its logits."""

import torch
from torch import Tensor, nn

from bench.compare import LEAST, relative_error


def as_trained(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """The model in evaluation mode, its statistics those of four images of noise.

    With the statistics that a new network has, or with random ones, sums grow from unit to unit,
    and rounding with them.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    device = next(model.parameters()).device
    with torch.no_grad():
        model.train()(torch.randn(4, 3, *size, device=device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def require_accurate(name: str, got: Tensor, exact: Tensor, own: Tensor) -> None:
    """Raises ValueError where logits are wrong: what is wrong has no speed.

    Args:
        name: of the way they were computed in.
        got: the logits.
        exact: the same in float64.
        own: the same as eager PyTorch computes them in got's dtype. `got` may be off twice as far:
            through hundreds of layers rounding grows, in PyTorch's operators as in these.
    """
    error = relative_error(got, exact)
    allowed = 2 * relative_error(own, exact)
    if got.dtype in (torch.float32, torch.float64):
        allowed = max(allowed, LEAST[torch.float32])
    if not error <= allowed:
        raise ValueError(
            f"{name}: expected logits within {allowed:.2g} of their norm, got {error:.2g}"
        )
