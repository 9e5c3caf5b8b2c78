"""Sums at the ends of residual blocks, left to the normalisation that reads them first.

A pre-activation unit ends in an addition and the next one opens with a normalisation of the sum:
`ran_kernels.add_batch_norm_relu` makes the sum, its statistics and the normalised ReLU in one node.
So what passes from unit to unit may be a sum that nobody has made yet.
"""

from typing import Protocol

import torch.fx
from torch import Tensor, nn

from ran_kernels import Measured
from ran_kernels.nn import (
    add_norm_act,
    add_norm_relu_conv,
    are_products,
    measured_convs,
    norm_act,
    norm_relu_conv,
)
from ran_kernels.parts import is_called_plainly


class Sum:
    """a + b, each (N, C, H, W), made by whoever asks first and once."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self._terms: tuple[Tensor, Tensor] | None = (a, b)
        self._value: Tensor | None = None
        self._measured: Measured | None = None

    @classmethod
    def made(cls, measured: Measured) -> "Sum":
        """One that is made already, and measured where the next normalisation can use that."""
        made = cls.__new__(cls)
        made._measured = measured
        made._keep(measured.value)
        return made

    @property
    def value(self) -> Tensor:
        """The sum itself."""
        if self._value is None:
            assert self._terms is not None
            a, b = self._terms
            self._keep(a + b)
        assert self._value is not None
        return self._value

    @property
    def first(self) -> Tensor:
        """A tensor that is laid out as the sum."""
        return self.value if self._terms is None else self._terms[0]

    @property
    def measured(self) -> Tensor | Measured:
        """The sum itself, with its statistics where they are known."""
        return self.value if self._measured is None else self._measured

    def norm_relu_conv(
        self, norm: nn.Module, *convs: nn.Conv2d, recompute: bool
    ) -> tuple[Tensor, ...]:
        """As `ran_kernels.nn.norm_relu_conv`, the sum made in the same pass if it is not yet."""
        if self._terms is None:
            return norm_relu_conv(norm, self.measured, *convs, recompute=recompute)
        total, *results = add_norm_relu_conv(norm, *self._terms, *convs, recompute=recompute)
        self._keep(total)
        return tuple(results)

    def norm_act(self, norm: nn.Module, act: nn.Module) -> Tensor:
        """``act(norm(sum))``, the sum made in the same pass if it is not yet."""
        if self._terms is None:
            return norm_act(norm, act, self.measured)
        total, out = add_norm_act(norm, act, *self._terms)
        self._keep(total)
        return out

    def _keep(self, value: Tensor) -> None:
        self._value, self._terms = value, None


#: What passes between units.
Features = Tensor | Sum


class _Chained(Protocol):
    def chain(self, x: Features) -> Features: ...


def value_of(x: Features) -> Tensor:
    """(N, C, H, W), the sum made."""
    return x.value if isinstance(x, Sum) else x


def opened(norm: nn.Module, x: Features, *convs: nn.Conv2d, recompute: bool) -> tuple[Tensor, ...]:
    """``conv(relu(norm(x)))`` of each of `convs`, as `ran_kernels.nn.norm_relu_conv`."""
    if isinstance(x, Sum):
        return x.norm_relu_conv(norm, *convs, recompute=recompute)
    return norm_relu_conv(norm, x, *convs, recompute=recompute)


def opened_products(
    norm: nn.Module | None, x: Features, *convs: nn.Conv2d, recompute: bool
) -> tuple[Tensor, list[Measured]]:
    """The value of x, and what `ran_kernels.nn.measured_convs` makes of it."""
    value = x.measured if isinstance(x, Sum) else x
    return measured_convs(norm, value, *convs, recompute=recompute)


def can_be_products(x: Features) -> bool:
    """Whether 1×1 convolutions of x may be made by `ran_kernels.norm_relu_conv`'s kernels."""
    return are_products(x.first if isinstance(x, Sum) else x)


def chained(block: nn.Module, x: Features) -> Features:
    """``block(x)``, whose sums at either end are left to what comes next.

    Where that would pass over something, a hook, a tracer's stand-ins, another forward, the block
    is called with a tensor and gives one.
    """
    if isinstance(x, torch.fx.Proxy) or not is_called_plainly(block):
        return called(block, x)
    if type(block) is nn.Sequential:
        for part in block:
            x = chained(part, x)
        return x
    # Of the very class: one that inherits `chain` may have a forward of its own.
    if "chain" not in vars(type(block)):
        return called(block, x)
    own: _Chained = block  # type: ignore[assignment]
    return own.chain(x)


def called(block: nn.Module, x: Features) -> Tensor:
    """``block(x)``."""
    out: Tensor = block(value_of(x))
    return out
