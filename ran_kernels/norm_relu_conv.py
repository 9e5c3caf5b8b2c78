"""1×1 convolutions that take the normalisation before them in, and measure the one after them.

He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016 (arXiv 1603.05027): most of what
a bottleneck's convolutions read and write belongs to 1×1 convolutions, each fed by a normalisation
and a ReLU and followed by another normalisation. As a matrix product that normalises and clips what
it loads, and gathers the statistics of what it stores, such a convolution needs no activation in
memory at all. The node keeps x, and the next one y, and numbers of channels.

What a pre-activation unit moves at least, in S, the bytes of its input, with a width of a quarter
of its channels, in training, as bench/networks/traffic.py counts it and its test holds it to:

    forward   conv1: reads x, writes y1 and measures it                          1 + 1/4
              batch_norm_relu of y1, with its statistics                         1/4 + 1/4
              conv2, 3×3: PyTorch's                                              1/4 + 1/4
              statistics of y2                                                   1/4
              conv3: reads y2 and x, writes y3 + x and measures the sum          1/4 + 1 + 1
              altogether                                                         4.75
    backward  conv3: reduce reads grad and y2, writes what the ReLU lets through 1 + 1/4 + 1/4
                     weight reads grad and y2                                    1 + 1/4
                     batch_norm_grad                                             3/4
              conv2: PyTorch's, which reads and counts its operands once         3/4
              batch_norm_reduce and batch_norm_grad of y1                        1/2 + 3/4
              conv1: reduce reads y1's gradient and x, writes nothing            1/4 + 1
                     weight likewise                                             1/4 + 1
                     grad likewise, and the sum's gradient; writes x's           1/4 + 3
              altogether                                                         11.25

Made of `add_batch_norm_relu`, `batch_norm_relu` and PyTorch's convolutions it is 9.5 and 13.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backends
from .batch_norm_conv import Convolution, batch_norm_relu_conv2d, require_convolutions
from .batch_norm_node import (
    Channels,
    Kept,
    Needed,
    Options,
    Parts,
    Statistics,
    gradients,
    keep,
    known,
    measured,
    norm_of,
    prepare,
    unpack,
    ways_into,
)
from .checks import autocast_dtype, require_device, require_shape, require_tensor
from .layouts import memory_format_of
from .norm_relu_conv_parts import (
    NORM_RELU_CONV,
    NORM_RELU_CONV_GRAD,
    NORM_RELU_CONV_REDUCE,
    NORM_RELU_CONV_WEIGHT,
    out_size,
)


class Measured(NamedTuple):
    """A convolution's result, and what the next normalisation asks of it in training."""

    value: Tensor  # (N, O, H', W')
    statistics: Statistics | None  # mean and biased variance (O,) of this process's batch


def norm_relu_conv(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    convs: Sequence[Convolution],
    addend: Tensor | None = None,
    measure: bool = True,
    statistics: Statistics | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    process_group: Any = None,
) -> tuple[Tensor, list[Measured]]:
    """``conv2d(batch_norm_relu(x, …), …) + addend`` of 1×1 convolutions, and its statistics.

    On channels_last images that Triton runs on, as matrix products; elsewhere made of
    `batch_norm_relu_conv2d`. Products are summed in float32 (float64 in float64); those of float32
    are made in TF32 where PyTorch's convolutions are. The same bits every run.

    Args:
        x: (N, C, H, W).
        running_mean, running_var, weight, bias, training, momentum, eps, process_group, statistics:
            as `batch_norm`.
        convs: at least one 1×1 convolution of the activation, without bias, groups or padding, in
            the activation's dtype. Under autocast they are made in its dtype.
        addend: added to what the convolution, one alone, gives, before that is rounded and
            measured; of its shape.
        measure: whether the results' statistics are wanted, in training.

    Returns:
        x itself, to go on with: the gradient that comes to it is added in the pass that makes
        x's; and of each convolution the result and, in training, its statistics, which have no
        gradient of their own: that of the result takes them into account where a norm uses them.

    Raises:
        TypeError: an argument is no floating-point tensor, a stride no integer or pair of them.
        ValueError: as `batch_norm`, or a convolution does not fit x, or `addend` its result.
        BackendError: a backend was asked for that cannot run this.
    """
    channels = Channels(running_mean, running_var, weight, bias, *known(statistics))
    options = Options(True, training, momentum, eps, process_group)
    backend, options = prepare("norm_relu_conv", "x", x, channels, options)
    convs = _require_pointwise(convs, x, addend)
    if backend is not None and _is_product(x, convs, addend, normalised=True):
        return _run(x, addend, channels, backend, options, convs, measure and options.training)
    own = {name: value for name, value in options._asdict().items() if name != "relu"}
    outs = batch_norm_relu_conv2d(x, *channels[:4], convs=convs, statistics=statistics, **own)
    return x, _measured(outs, addend, measure and options.training, backend)


def conv_statistics(
    x: Tensor, *, convs: Sequence[Convolution], addend: Tensor | None = None, measure: bool = True
) -> tuple[Tensor, list[Measured]]:
    """``conv2d(x, …) + addend`` of 1×1 convolutions, and its statistics.

    `norm_relu_conv` without a normalisation: the start of a post-activation residual block.

    Args:
        x: (N, C, H, W).
        convs, addend: as `norm_relu_conv`.
        measure: whether the results' statistics are wanted.

    Returns, Raises: as `norm_relu_conv`.
    """
    require_tensor("x", x)
    convs = _require_pointwise(convs, x, addend)
    options = Options(False, False, 0.0, 0.0, None)
    backend = backends.choose("batch_norm", x, kind="conv_statistics")
    plain = x.numel() == 0 or backends.exporting()
    if not plain and _is_product(x, convs, addend, normalised=False):
        return _run(x, addend, Channels(*[None] * 4), backend, options, convs, measure)
    outs = [F.conv2d(x, *conv) for conv in convs]
    return x, _measured(outs, addend, measure, None if plain else backend)


def _require_pointwise(
    convs: Sequence[Convolution], x: Tensor, addend: Tensor | None
) -> list[Convolution]:
    convs, forms = require_convolutions(convs, "x", x)
    for i, (conv, form) in enumerate(zip(convs, forms, strict=True)):
        stride, padding, _, groups = form
        kernel = tuple(conv.weight.shape[2:])
        if kernel != (1, 1) or padding != (0, 0) or groups != 1 or stride[0] != stride[1]:
            raise ValueError(
                f"convs[{i}]: expected a 1×1 convolution of one stride, without padding and "
                f"groups, got kernel {kernel}, stride {stride}, padding {padding}, groups {groups}"
            )
        if conv.bias is not None:
            raise ValueError(f"convs[{i}].bias: expected None, got {tuple(conv.bias.shape)}")
    if addend is not None:
        require_tensor("addend", addend)
        if len(convs) != 1:
            raise ValueError(f"addend: expected one convolution beside it, got {len(convs)}")
        size = out_size(x.shape[2:], forms[0][0][0])
        shape = (x.shape[0], convs[0].weight.shape[0], *size)
        require_shape("addend", addend, shape, "as the convolution's result")
        require_device("addend", addend, "x", x)
    return [
        Convolution(conv.weight, None, form[0]) for conv, form in zip(convs, forms, strict=True)
    ]


def _is_product(
    x: Tensor, convs: Sequence[Convolution], addend: Tensor | None, *, normalised: bool
) -> bool:
    """Whether the kernels can stand for PyTorch's way."""
    dtype = autocast_dtype(convs[0].weight)
    return (
        backends.choose("norm_relu_conv", x) == "triton"
        and memory_format_of(x) == torch.channels_last
        and (normalised or x.dtype == dtype)
        and (addend is None or addend.dtype == dtype)
    )


def _measured(
    outs: Sequence[Tensor], addend: Tensor | None, measure: bool, backend: str | None
) -> list[Measured]:
    """The results of PyTorch's way."""
    if addend is not None:
        outs = [outs[0] + addend]
    if not measure:
        return [Measured(out, None) for out in outs]
    statistics = Parts(backend or "reference").statistics
    with torch.no_grad():
        return [Measured(out, tuple(statistics(out.detach(), None)[1:])) for out in outs]


def _run(
    x: Tensor,
    addend: Tensor | None,
    channels: Channels,
    backend: str,
    options: Options,
    convs: Sequence[Convolution],
    measure: bool,
) -> tuple[Tensor, list[Measured]]:
    # Cast out here, where autograd and FSDP see whose gradients and shards they are.
    weights = [conv.weight.to(autocast_dtype(conv.weight)) for conv in convs]
    strides = tuple(conv.stride[0] for conv in convs)  # type: ignore[index]
    run = _apply if options.process_group is None else _apply_untraced
    x = x.contiguous(memory_format=torch.channels_last)
    x, *results = run(x, addend, *channels, backend, *options, strides, measure, *weights)
    if not measure:
        return x, [Measured(y, None) for y in results]
    return x, [Measured(y, (mean, variance)) for y, mean, variance in _threes(results)]


def _threes(results: Sequence[Any]) -> list[tuple[Any, Any, Any]]:
    return list(zip(results[::3], results[1::3], results[2::3], strict=True))


class _NormReluConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, addend: Tensor | None, *arguments: Any) -> Any:
        channels, backend, options, (strides, measure, *weights) = unpack(arguments)
        parts = Parts(backend)
        kept = Kept(x, *[None] * 6)  # type: ignore[arg-type]
        if options.relu:
            kept = measured(parts, x, None, channels, options)
        norm = norm_of(kept)
        results: list[Tensor] = []
        for weight, stride in zip(weights, strides, strict=True):
            y, *statistics = NORM_RELU_CONV["triton"](
                x, *norm, weight.flatten(1), addend, stride, options.eps, measure
            )
            results += [y, *statistics] if measure else [y]
        if measure:
            ctx.mark_non_differentiable(*(t for _, *pair in _threes(results) for t in pair))
        ctx.parts, ctx.options, ctx.strides, ctx.measure = parts, options, strides, measure
        keep(ctx, kept, *weights)
        ctx.set_materialize_grads(False)
        return x, *results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: checkpointing recomputes at the first access
        kept, weights = Kept(*saved[: len(Kept._fields)]), saved[len(Kept._fields) :]
        options: Options = ctx.options
        elsewhere, *of_results = grads
        of_results = of_results[:: 3 if ctx.measure else 1]
        products = [
            _Product(grad, weight.flatten(1), stride)
            for grad, weight, stride in zip(of_results, weights, ctx.strides, strict=True)
            if grad is not None
        ]
        needs_x, needs_addend, _, _, *needs_affine = ctx.needs_input_grad[:6]
        of_weights = [
            grad is not None and needs
            for grad, needs in zip(of_results, ctx.needs_input_grad[-len(weights) :], strict=True)
        ]
        norm = norm_of(kept)
        grad_weights = [
            NORM_RELU_CONV_WEIGHT["triton"](grad, kept.x, *norm, stride, options.eps).view_as(
                weight
            )
            if needs
            else None
            for grad, weight, stride, needs in zip(
                of_results, weights, ctx.strides, of_weights, strict=True
            )
        ]
        needed = Needed(needs_x, False, *needs_affine)
        if not any(needed):
            grad_x = grad_weight = grad_bias = None
        elif options.relu:
            found = _normalised(ctx.parts, kept, products, elsewhere, options, needed)
            grad_x, grad_weight, grad_bias = found.x, found.weight, found.bias
        else:
            grad_x, grad_weight, grad_bias = _added(kept.x, products, elsewhere), None, None
        return (
            *(grad_x if needs_x else None, of_results[0] if needs_addend else None),
            *(None, None, grad_weight, grad_bias, None, None),
            *[None] * (len(options) + 3),
            *grad_weights,
        )


_apply, _apply_untraced = ways_into(_NormReluConv)


class _Product(NamedTuple):
    """What comes to the operand of a convolution: its result's gradient, through the matrix."""

    grad: Tensor
    conv: Tensor  # (O, C)
    stride: int


def _added(x: Tensor, products: Sequence[_Product], total: Tensor | None) -> Tensor | None:
    """`total` and what comes to a convolved image of x's size from all products."""
    for grad, conv, stride in products:
        none = [None] * 6
        total = NORM_RELU_CONV_GRAD["triton"](
            grad, None, total, *none, 1, conv, x.shape[2:], stride, 0.0
        )
    return total


def _normalised(
    parts: Parts,
    kept: Kept,
    products: Sequence[_Product],
    elsewhere: Tensor | None,
    options: Options,
    needed: Needed,
) -> Any:
    """As `gradients`, of what comes to the activation from the products."""
    if len(products) == 1:
        (product,) = products
        return gradients(_Inside(parts, product), kept, product.grad, elsewhere, options, needed)
    total = _added(kept.x, products, None)
    total = total if total is None else total.to(kept.x.dtype)
    return gradients(parts, kept, total, elsewhere, options, needed)


class _Inside(Parts):
    """Passes whose gradient is that of a convolution's result, multiplied in each of them again.

    Unless that reads more than to write the product down once, as where a convolution has more
    channels than it reads.
    """

    def __init__(self, parts: Parts, product: _Product) -> None:
        self._parts, self._product = parts, product
        out, channels = product.conv.shape
        # The passes read 2 O + 3 C channels of each position, against O + 5 C with g written down.
        self._keeps = out >= 2 * channels
        self._masked: Tensor | None = None

    def incoming(self, grad: Tensor, x: Tensor) -> Tensor:
        return grad

    def reduce(
        self, grad: Tensor, x: Tensor, out: None, *norm: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        *channels, eps, _ = norm
        _, conv, stride = self._product
        masked, *sums = NORM_RELU_CONV_REDUCE["triton"](
            grad, x, *channels, conv, stride, eps, self._keeps
        )
        self._masked = masked if self._keeps else None
        return masked, sums[0], sums[1]

    def grad(self, grad: Tensor, x: Tensor, addend: Tensor | None, *norm: Any) -> Tensor:
        *channels, count, eps, _ = norm
        if self._masked is not None:
            return self._parts.grad(self._masked, x, addend, *channels, count, eps, False)
        _, conv, stride = self._product
        return NORM_RELU_CONV_GRAD["triton"](
            grad, x, addend, *channels, count, conv, x.shape[2:], stride, eps
        )
