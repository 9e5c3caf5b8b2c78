"""What the autograd nodes that normalise share: their choice of a way, the forward, the gradients.

`ran_kernels.batch_norm` has the node of the normalisation alone, `ran_kernels.batch_norm_conv` the
one that convolves its result.
"""

from collections.abc import Callable, Sequence
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
from .checks import DTYPES, require_device, require_number, require_shape, require_tensor
from .layouts import in_layout_of
from .library import LIBRARY, TAGS, unrecorded

aten = torch.ops.aten


class Channels(NamedTuple):
    """What there is one of a channel, each (C,) or None."""

    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None = None  # of the batch, where it is known
    variance: Tensor | None = None  # likewise, biased


#: Of a batch, each (C,): what `Channels` has of it.
Statistics = tuple[Tensor, Tensor]


def known(statistics: Statistics | None) -> Statistics | tuple[None, None]:
    """Mean and variance of `Channels`. Raises TypeError unless they are two tensors, or None."""
    if statistics is None:
        return (None, None)
    is_pair = isinstance(statistics, (tuple, list)) and len(statistics) == 2
    if not is_pair or not all(isinstance(t, Tensor) for t in statistics):
        got = type(statistics).__name__
        if isinstance(statistics, (tuple, list)):
            got = f"({', '.join(type(t).__name__ for t in statistics)})"
        raise TypeError(f"statistics: expected a pair of tensors, mean and variance, got {got}")
    for i, value in enumerate(statistics):
        require_tensor(f"statistics[{i}]", value, dims=1)
    return statistics[0], statistics[1]


class Options(NamedTuple):
    """What is no tensor."""

    relu: bool
    training: bool  # normalise with the batch's statistics and update the running ones
    momentum: float
    eps: float
    process_group: Any  # a torch.distributed.ProcessGroup, or None: this process alone


class Kept(NamedTuple):
    """What a node keeps for the gradients of the normalisation."""

    x: Tensor  # what is normalised: of a sum, the sum
    mean: Tensor  # (C,)
    variance: Tensor  # (C,)
    weight: Tensor | None  # (C,)
    bias: Tensor | None  # (C,)
    out: Tensor | None  # the result, where the ReLU's mask is not computed again
    total: Tensor | None  # (), how many values all processes have; None: this process alone


class Needed(NamedTuple):
    """Which gradients of the normalisation are asked for."""

    x: bool  # or either term of a sum
    shortcut: bool
    weight: bool
    bias: bool


class Gradients(NamedTuple):
    """Those of `Needed`, None where one is not."""

    x: Tensor | None
    shortcut: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def prepare(
    name: str, x_name: str, x: Tensor, channels: Channels, options: Options
) -> tuple[str | None, Options]:
    """The backend that the node called `name` runs on, and its options, of checked arguments.

    None in a backend's place where the reference's expression is to stand for the node.
    """
    require_tensor(x_name, x)
    _require_channels(x_name, x, channels, options.training)
    for number in ("momentum", "eps"):
        require_number(number, getattr(options, number))
    if options.eps < 0:
        raise ValueError(f"eps: expected at least 0, got {options.eps}")
    options = options._replace(
        process_group=batch_norm_sync.shared(options.process_group) if options.training else None
    )
    alone = options.process_group is None
    values = values_of(x)
    if options.training and alone and values == 1:
        raise ValueError(
            f"{x_name}: expected more than 1 value per channel when training, "
            f"got shape {tuple(x.shape)}"
        )
    backend = backends.choose("batch_norm", x, kind=name)
    plain = alone and (backend == "reference" or values == 0 or backends.exporting())
    return None if plain else backend, options


def unpack(arguments: Sequence[Any]) -> tuple[Channels, str, Options, Sequence[Any]]:
    """What a node's ``apply`` is given after its images: channels, a backend, options, the rest."""
    after = len(Channels._fields)
    end = after + 1 + len(Options._fields)
    channels, options = Channels(*arguments[:after]), Options(*arguments[after + 1 : end])
    return channels, arguments[after], options, arguments[end:]


def ways_into(node: type[torch.autograd.Function]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``node.apply`` as torch.compile traces it, and for statistics of several processes."""

    # Dynamo keeps out of it and AOTAutograd traces it, as it does CBAM's node.
    @torch.compiler.allow_in_graph
    def traced(*arguments: Any) -> Any:
        return node.apply(*arguments)

    # The reference's passes could be differentiated again, of this process's values alone.
    def refusing(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return batch_norm_sync.differentiated_once(*node.backward(ctx, *grads))

    synchronised: Any = type(node.__name__, (node,), {"backward": staticmethod(refusing)})

    # Communication is no operation on tensors: torch.compile breaks the graph here.
    @torch.compiler.disable
    def untraced(*arguments: Any) -> Any:
        return synchronised.apply(*arguments)

    return traced, untraced


def of_reference(options: Options) -> dict[str, Any]:
    """The options that functions of the reference take."""
    return {name: getattr(options, name) for name in ("training", "momentum", "eps")}


class Parts:
    """The four passes of a backend; those of the reference for synchronised statistics, and where
    a caller makes them himself."""

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

    def incoming(self, grad: Tensor, x: Tensor) -> Tensor:
        """The gradient as `reduce` and `grad` take it."""
        return in_layout_of(grad, x)


@unrecorded
def normalise(
    parts: Parts,
    x: Tensor,
    addend: Tensor | None,
    shortcut: Tensor | None,
    channels: Channels,
    options: Options,
) -> tuple[Tensor, Kept]:
    """The result, and what to keep, as `measured` has it."""
    kept = measured(parts, x, addend, channels, options)
    out = apply(parts, kept, shortcut, options)
    return out, kept if shortcut is None else kept._replace(out=out)


def measured(
    parts: Parts, x: Tensor, addend: Tensor | None, channels: Channels, options: Options
) -> Kept:
    """What to keep, before anything is normalised; its x is the sum where there is an `addend`.

    In training the running statistics are updated.
    """
    count: int | Tensor = values_of(x)
    if options.training:
        if channels.mean is not None and channels.variance is not None and addend is None:
            wide = computing_dtype(x.dtype)
            total, mean, variance = None, channels.mean.to(wide), channels.variance.to(wide)
        else:
            total, mean, variance = parts.statistics(x, addend)
        if options.process_group is not None:
            mean, variance, count = batch_norm_sync.merge_statistics(
                mean, variance, values_of(x), options.process_group
            )
        _update(channels, mean, variance, count, options.momentum)
    else:
        assert channels.running_mean is not None
        assert channels.running_var is not None
        wide = computing_dtype(x.dtype)
        mean, variance = channels.running_mean.to(wide), channels.running_var.to(wide)
        total = None if addend is None else in_layout_of(x + addend, x)
    return Kept(
        *(
            x if addend is None or total is None else total,
            mean,
            variance,
            channels.weight,
            channels.bias,
        ),
        out=None,
        total=count if isinstance(count, Tensor) else None,
    )


def apply(parts: Parts, kept: Kept, shortcut: Tensor | None, options: Options) -> Tensor:
    """The result of what is kept: the same bits forwards and, computed again, backwards."""
    return parts.apply(kept.x, shortcut, *norm_of(kept), options.eps, options.relu)


# Two equal calls are one in what AOTAutograd compiles, and the activation would be kept after all:
# the second is given something of the backward, an empty slice of a gradient.
LIBRARY.define("after(Tensor value, Tensor event) -> Tensor", tags=TAGS)
LIBRARY.impl("after", lambda value, event: value.clone(), "CompositeExplicitAutograd")
torch.library.register_fake("ran::after", lambda value, event: value.clone(), lib=LIBRARY)
_AFTER = torch.ops.ran.after.default


def apply_again(parts: Parts, kept: Kept, grad: Tensor, options: Options) -> Tensor:
    """As `apply` without a shortcut, in the backward, to which `grad` comes."""
    variance = _AFTER(kept.variance, grad.detach()[:0])
    return apply(parts, kept._replace(variance=variance), None, options)


def keep(ctx: Any, kept: Kept, *more: Tensor | None) -> None:
    """Saves for the backward what it takes, `more` after `kept`; ``ctx.options`` are set."""
    if not ctx.options.training and any(ctx.needs_input_grad) and kept.mean is not None:
        # Copies: autograd does not notice when training updates the running statistics.
        kept = kept._replace(mean=kept.mean.clone(), variance=kept.variance.clone())
    ctx.save_for_backward(*kept, *more)


@unrecorded
def gradients(
    parts: Parts,
    kept: Kept,
    grad: Tensor | None,
    elsewhere: Tensor | None,
    options: Options,
    needed: Needed,
) -> Gradients:
    """Of the gradient of the result, and of what comes to x, being a result too, from elsewhere."""
    if grad is None:
        return Gradients(elsewhere, None, None, None)
    x, out = kept.x, kept.out
    grad = parts.incoming(grad, x)
    norm = norm_of(kept)
    # With a shortcut the mask is `out`'s and made once, without one each pass makes it again.
    relu = options.relu and out is None
    sums = sum_grad = sum_grad_xhat = None
    if options.training or needed.weight or needed.bias:
        masked, sum_grad, sum_grad_xhat = parts.reduce(
            grad, x, out, *norm, options.eps, options.relu
        )
        grad = grad if out is None else masked
        sums = (sum_grad, sum_grad_xhat) if options.training else None
    elif out is not None:
        grad = aten.threshold_backward(grad, out, 0)
    count = values_of(x)
    if sums is not None and kept.total is not None:
        sums, count = batch_norm_sync.mean_sums(*sums, kept.total, options.process_group), 1
    grad_x = grad_weight = grad_bias = None
    if needed.x:
        grad_x = parts.grad(
            grad, x, elsewhere, *norm, *(sums or (None, None)), count, options.eps, relu
        )
    if needed.weight and kept.weight is not None and sum_grad_xhat is not None:
        grad_weight = sum_grad_xhat.to(kept.weight.dtype)
    if needed.bias and kept.bias is not None and sum_grad is not None:
        grad_bias = sum_grad.to(kept.bias.dtype)
    return Gradients(grad_x, grad if needed.shortcut else None, grad_weight, grad_bias)


def values_of(x: Tensor) -> int:
    """How many a channel has."""
    return x.shape[0] * x.shape[2] * x.shape[3]


def norm_of(kept: Kept) -> tuple[Tensor | None, ...]:
    """Mean, variance, weight and bias in the dtype that x is computed in."""
    wide = computing_dtype(kept.x.dtype)
    affine = (t if t is None or t.dtype == wide else t.to(wide) for t in (kept.weight, kept.bias))
    return (kept.mean, kept.variance, *affine)


def _update(
    channels: Channels, mean: Tensor, variance: Tensor, count: int | Tensor, momentum: float
) -> None:
    if channels.running_mean is not None and channels.running_var is not None:
        unbiased = variance * (count / (count - 1))
        # Past autograd's version counter, as PyTorch does it: its own node saves them in training,
        # too, and would refuse its backward where one layer runs both ways in a step.
        # Both at once: on a GPU two launches.
        running = [channels.running_mean.data, channels.running_var.data]
        torch._foreach_mul_(running, 1 - momentum)
        torch._foreach_add_(running, [mean, unbiased], alpha=momentum)


def _require_channels(x_name: str, x: Tensor, channels: Channels, training: bool) -> None:
    shape, device = (x.shape[1],), x.device
    for i, value in enumerate(channels):
        # Asked in short first: a network has hundreds of norms.
        if value is not None and not (
            isinstance(value, Tensor)
            and value.shape == shape
            and value.device == device
            and value.dtype in DTYPES
        ):
            name = Channels._fields[i]
            name = {"mean": "statistics[0]", "variance": "statistics[1]"}.get(name, name)
            require_tensor(name, value, dims=1)
            require_shape(name, value, shape, f"(C,) of {x_name}")
            require_device(name, value, x_name, x)
    mean, var = channels.running_mean, channels.running_var
    for name, value, other in (("running_mean", mean, var), ("running_var", var, mean)):
        if value is None and (other is not None or not training):
            why = "as the other running statistic is given" if training else "in evaluation"
            raise ValueError(f"{name}: expected a tensor {why}, got None")
        if value is not None and value.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name}: expected a tensor without a gradient, got one that wants it")
