"""Batch normalisation with the ReLU and the additions around it, as one autograd node.

Ioffe and Szegedy, "Batch Normalization", ICML 2015 (arXiv 1502.03167). The node keeps what is
normalised and two numbers a channel; plain PyTorch keeps the ReLU's result besides.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import backends, batch_norm_sync, reference
from .batch_norm_parts import (
    BATCH_NORM_APPLY,
    BATCH_NORM_GRAD,
    BATCH_NORM_REDUCE,
    BATCH_NORM_STATISTICS,
    computing_dtype,
)
from .checks import promote, require_device, require_shape, require_tensor
from .layouts import dense_layout, in_layout_of

aten = torch.ops.aten


class Channels(NamedTuple):
    """What there is one of a channel, each (C,) or None."""

    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class Options(NamedTuple):
    """What is no tensor."""

    relu: bool
    training: bool  # normalise with the batch's statistics and update the running ones
    momentum: float
    eps: float
    process_group: Any  # a torch.distributed.ProcessGroup, or None: this process alone


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    process_group: Any = None,
) -> Tensor:
    """``torch.nn.functional.batch_norm`` of (N, C, H, W): 3 S forward, 5 S backward.

    Computed in float32, or in float64 where x is of that dtype; mean and variance as exactly as
    from deviations from the mean. The same bits every run, whatever the number of threads.

    Args:
        x: (N, C, H, W).
        running_mean: (C,), updated in training, or None; the mean to normalise with in evaluation.
        running_var: (C,), likewise; updated with the unbiased variance. None exactly where
            `running_mean` is.
        weight: (C,) or None: 1.
        bias: (C,) or None: 0.
        training: normalise with the mean and the biased variance of x over N, H, W, instead of
            the running ones. Either way gradients flow.
        momentum: the share of the batch's statistics in the running ones.
        eps: added to the variance under the root.
        process_group: a `torch.distributed` group over whose processes training takes the
            statistics, as `torch.nn.SyncBatchNorm` does, of batches that may differ in size, and
            may be empty. On any device.

    Returns:
        (N, C, H, W) in x's dtype, with x's strides where x is contiguous or channels_last.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: shapes or devices do not fit, running statistics are missing, or training has
            one value per channel.
        BackendError: a backend was asked for that cannot run this.
    """
    channels = Channels(running_mean, running_var, weight, bias)
    options = Options(False, training, momentum, eps, process_group)
    return _run("batch_norm", x, None, None, channels, options)


def batch_norm_relu(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    process_group: Any = None,
) -> Tensor:
    """``relu(batch_norm(x, …))``: 3 S forward, 5 S backward, and x alone is kept for it.

    The backward computes the ReLU's mask again from x, to the bits of the forward.

    Args, Returns, Raises: as `batch_norm`.
    """
    channels = Channels(running_mean, running_var, weight, bias)
    options = Options(True, training, momentum, eps, process_group)
    return _run("batch_norm_relu", x, None, None, channels, options)


def add_batch_norm_relu(
    a: Tensor,
    b: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    process_group: Any = None,
) -> tuple[Tensor, Tensor]:
    """``s = a + b`` and ``relu(batch_norm(s, …))``: 5 S forward, 6 S backward; s alone is kept.

    The end of a pre-activation residual block and the start of the next. The statistics are those
    of the sum as rounded to its dtype, gathered in the pass that writes it; the gradient that comes
    to the sum from elsewhere is added in the pass that makes a's and b's.

    Args:
        a: (N, C, H, W).
        b: (N, C, H, W).
        running_mean, running_var, weight, bias, training, momentum, eps, process_group: as
            `batch_norm`.

    Returns:
        Both (N, C, H, W), in the dtype that PyTorch's promotion gives for a and b, with a's strides
        where a is contiguous or channels_last.

    Raises: as `batch_norm`.
    """
    require_tensor("a", a)
    require_tensor("b", b)
    require_shape("b", b, a.shape, "as a")
    require_device("b", b, "a", a)
    a, b = promote(a, b)
    channels = Channels(running_mean, running_var, weight, bias)
    options = Options(True, training, momentum, eps, process_group)
    return _run("add_batch_norm_relu", a, b, None, channels, options)


def batch_norm_add_relu(
    x: Tensor,
    shortcut: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    process_group: Any = None,
) -> Tensor:
    """``relu(batch_norm(x, …) + shortcut)``: 4 S forward, 7 S backward; x and the result are kept.

    The end of a post-activation residual block.

    Args:
        x: (N, C, H, W).
        shortcut: (N, C, H, W).
        running_mean, running_var, weight, bias, training, momentum, eps, process_group: as
            `batch_norm`.

    Returns:
        (N, C, H, W), in the dtype that PyTorch's promotion gives for x and shortcut, with x's
        strides where x is contiguous or channels_last.

    Raises: as `batch_norm`.
    """
    require_tensor("x", x)
    require_tensor("shortcut", shortcut)
    require_shape("shortcut", shortcut, x.shape, "as x")
    require_device("shortcut", shortcut, "x", x)
    x, shortcut = promote(x, shortcut)
    channels = Channels(running_mean, running_var, weight, bias)
    options = Options(True, training, momentum, eps, process_group)
    return _run("batch_norm_add_relu", x, None, shortcut, channels, options)


def _run(
    name: str,
    x: Tensor,
    addend: Tensor | None,
    shortcut: Tensor | None,
    channels: Channels,
    options: Options,
) -> Any:
    x_name = "x" if addend is None else "a"
    require_tensor(x_name, x)
    _require_channels(x_name, x, channels, options.training)
    options = options._replace(
        process_group=batch_norm_sync.shared(options.process_group) if options.training else None
    )
    alone = options.process_group is None
    values = x.shape[0] * x.shape[2] * x.shape[3]
    if options.training and alone and values == 1:
        raise ValueError(
            f"{x_name}: expected more than 1 value per channel when training, "
            f"got shape {tuple(x.shape)}"
        )
    backend = backends.choose("batch_norm", x, kind=name)
    if alone and (backend == "reference" or values == 0 or backends.exporting()):
        images = [t for t in (x, addend, shortcut) if t is not None]
        plain = {name: getattr(options, name) for name in ("training", "momentum", "eps")}
        return getattr(reference, name)(*images, *channels, **plain)
    apply = _apply if alone else _apply_untraced
    return apply(dense_layout(x), addend, shortcut, *channels, backend, *options)


def _require_channels(x_name: str, x: Tensor, channels: Channels, training: bool) -> None:
    for name, value in channels._asdict().items():
        if value is not None:
            require_tensor(name, value, dims=1)
            require_shape(name, value, (x.shape[1],), f"(C,) of {x_name}")
            require_device(name, value, x_name, x)
    mean, var = channels.running_mean, channels.running_var
    for name, value, other in (("running_mean", mean, var), ("running_var", var, mean)):
        if value is None and (other is not None or not training):
            why = "as the other running statistic is given" if training else "in evaluation"
            raise ValueError(f"{name}: expected a tensor {why}, got None")


# Dynamo keeps out of it and AOTAutograd traces it, as it does CBAM's node.
@torch.compiler.allow_in_graph
def _apply(*arguments: Any) -> Any:
    return _BatchNorm.apply(*arguments)


# Communication is no operation on tensors: torch.compile breaks the graph here.
@torch.compiler.disable
def _apply_untraced(*arguments: Any) -> Any:
    return _BatchNorm.apply(*arguments)


class _Parts:
    """The four passes of a backend; those of the reference for synchronised statistics alone."""

    def __init__(self, backend: str) -> None:
        if backend == "reference":
            self.statistics: Any = reference.batch_norm_statistics
            self.apply: Any = reference.batch_norm_apply
            self.reduce: Any = reference.batch_norm_reduce
            self.grad: Any = reference.batch_norm_grad
            return
        self.statistics = BATCH_NORM_STATISTICS[backend]
        self.apply = BATCH_NORM_APPLY[backend]
        self.reduce = BATCH_NORM_REDUCE[backend]
        self.grad = BATCH_NORM_GRAD[backend]


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        addend: Tensor | None,
        shortcut: Tensor | None,
        *arguments: Any,
    ) -> Any:
        channels, backend, options = Channels(*arguments[:4]), arguments[4], Options(*arguments[5:])
        parts = _Parts(backend)
        values = x.shape[0] * x.shape[2] * x.shape[3]
        count: int | Tensor = values
        if options.training:
            total, mean, variance = parts.statistics(x, addend)
            if options.process_group is not None:
                mean, variance, count = batch_norm_sync.merge_statistics(
                    mean, variance, values, options.process_group
                )
            _update(channels, mean, variance, count, options.momentum)
        else:
            assert channels.running_mean is not None
            assert channels.running_var is not None
            wide = computing_dtype(x.dtype)
            mean, variance = channels.running_mean.to(wide), channels.running_var.to(wide)
            total = None if addend is None else in_layout_of(x + addend, x)
        if addend is not None:
            x = total
        affine = _affine(x, channels)
        out = parts.apply(x, shortcut, mean, variance, *affine, options.eps, options.relu)
        synchronised = isinstance(count, Tensor)
        ctx.parts, ctx.options, ctx.added = parts, options, addend is not None
        ctx.count = None if synchronised else count
        ctx.save_for_backward(
            *(x, mean, variance, channels.weight, channels.bias),
            *(out if shortcut is not None else None, count if synchronised else None),
        )
        ctx.set_materialize_grads(False)
        return out if addend is None else (x, out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        # once: checkpointing recomputes at the first access
        x, mean, variance, weight, bias, out, total = ctx.saved_tensors
        options: Options = ctx.options
        parts: _Parts = ctx.parts
        needs_x, needs_addend, needs_shortcut, _, _, *needs_affine = ctx.needs_input_grad[:7]
        others = [None] * (len(options) + 1)
        elsewhere = grads[0] if ctx.added else None
        grad = grads[-1]
        if grad is None:
            both = (elsewhere if needs_x else None, elsewhere if needs_addend else None)
            return (*both, *[None] * 5, *others)
        grad = in_layout_of(grad, x)
        affine = _affine(x, Channels(None, None, weight, bias))
        norm = (mean, variance, *affine)
        # With a shortcut the mask is `out`'s and made once, without one each pass makes it again.
        relu = options.relu and out is None
        sums = sum_grad = sum_grad_xhat = None
        if options.training or any(needs_affine):
            masked, sum_grad, sum_grad_xhat = parts.reduce(
                grad, x, out, *norm, options.eps, options.relu
            )
            grad = grad if out is None else masked
            sums = (sum_grad, sum_grad_xhat) if options.training else None
        elif out is not None:
            grad = aten.threshold_backward(grad, out, 0)
        count = ctx.count
        if sums is not None and total is not None:
            sums, count = batch_norm_sync.mean_sums(*sums, total, options.process_group), 1
        grad_x = None
        if needs_x or needs_addend:
            grad_x = parts.grad(
                grad, x, elsewhere, *norm, *(sums or (None, None)), count, options.eps, relu
            )
        grad_weight = grad_bias = None
        if needs_affine[0] and sum_grad_xhat is not None:
            grad_weight = sum_grad_xhat.to(weight.dtype)
        if needs_affine[1] and sum_grad is not None:
            grad_bias = sum_grad.to(bias.dtype)
        return (
            *(grad_x if needs_x else None, grad_x if needs_addend else None),
            *(grad if needs_shortcut else None, None, None, grad_weight, grad_bias),
            *others,
        )


def _affine(x: Tensor, channels: Channels) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias in the dtype that x is computed in."""
    wide = computing_dtype(x.dtype)
    weight, bias = channels.weight, channels.bias
    return (
        None if weight is None else weight.to(wide),
        None if bias is None else bias.to(wide),
    )


def _update(
    channels: Channels, mean: Tensor, variance: Tensor, count: int | Tensor, momentum: float
) -> None:
    if channels.running_mean is not None and channels.running_var is not None:
        unbiased = variance * (count / (count - 1))
        channels.running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
        channels.running_var.mul_(1 - momentum).add_(unbiased, alpha=momentum)
