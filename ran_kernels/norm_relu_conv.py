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

A mask's last convolution that makes the gate, of as many channels as it reads, likewise:

    forward   reads x and the trunk, writes what the gate gives and measures it  3
    backward  gate_grad reads grad, x and the trunk, writes two gradients        5
              reduce and weight read the logits' gradient and x; grad, too,
              and writes x's                                                     2 + 2 + 3

With `attention_gate` after it, and the statistics of what that gives, it is 6 and 12.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backends
from .attention_gate import attention_gate
from .batch_norm_conv import Convolution, batch_norm_relu_conv2d, require_convolutions
from .batch_norm_node import Channels, Options, Parts, Statistics, known, prepare
from .checks import autocast_dtype, require_device, require_shape, require_tensor
from .layouts import memory_format_of
from .norm_relu_conv_node import Beside, Measured, run
from .norm_relu_conv_parts import out_size


def norm_relu_conv(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    convs: Sequence[Convolution],
    addend: Tensor | None = None,
    trunk: Tensor | None = None,
    residual: bool = True,
    measure: bool = True,
    statistics: Statistics | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    process_group: Any = None,
) -> tuple[Tensor, list[Measured]]:
    """``conv2d(batch_norm_relu(x, …), …) + addend`` of 1×1 convolutions, and its statistics.

    With `trunk` the end of a soft mask branch: ``(1 + M) * trunk``, M = ``sigmoid(conv2d(…))``.

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
        trunk: likewise of its shape, what the gate of attention multiplies: `attention_gate` of the
            convolution's result, which is not written down, and computed again in the backward.
        residual: as `attention_gate`.
        measure: whether the results' statistics are wanted, in training.

    Returns:
        x itself, to go on with: the gradient that comes to it is added in the pass that makes
        x's; and of each convolution the result and, in training, its statistics, which have no
        gradient of their own: that of the result takes them into account where a norm uses them.

    Raises:
        TypeError: an argument is no floating-point tensor, a stride no integer or pair of them.
        ValueError: as `batch_norm`, or a convolution does not fit x, or `addend` or `trunk` its
            result, or both are given.
        BackendError: a backend was asked for that cannot run this.
    """
    channels = Channels(running_mean, running_var, weight, bias, *known(statistics))
    options = Options(True, training, momentum, eps, process_group)
    backend, options = prepare("norm_relu_conv", "x", x, channels, options)
    convs = _require_pointwise(convs, x, addend, trunk)
    beside = Beside(addend, trunk, residual)
    if backend is not None and _is_product(x, convs, beside, normalised=True):
        return run(x, beside, channels, backend, options, convs, measure and options.training)
    own = {name: value for name, value in options._asdict().items() if name != "relu"}
    outs = batch_norm_relu_conv2d(x, *channels[:4], convs=convs, statistics=statistics, **own)
    return x, _measured(outs, beside, measure and options.training, backend)


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
    convs = _require_pointwise(convs, x, addend, None)
    beside = Beside(addend, None, False)
    options = Options(False, False, 0.0, 0.0, None)
    backend = backends.choose("batch_norm", x, kind="conv_statistics")
    plain = x.numel() == 0 or backends.exporting()
    if not plain and _is_product(x, convs, beside, normalised=False):
        return run(x, beside, Channels(*[None] * 4), backend, options, convs, measure)
    outs = [F.conv2d(x, *conv) for conv in convs]
    return x, _measured(outs, beside, measure, None if plain else backend)


def _require_pointwise(
    convs: Sequence[Convolution], x: Tensor, addend: Tensor | None, trunk: Tensor | None
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
    if addend is not None and trunk is not None:
        raise ValueError(f"trunk: expected None beside addend, got {tuple(trunk.shape)}")
    for name, image in (("addend", addend), ("trunk", trunk)):
        if image is None:
            continue
        require_tensor(name, image)
        if len(convs) != 1:
            raise ValueError(f"{name}: expected one convolution beside it, got {len(convs)}")
        size = out_size(x.shape[2:], forms[0][0][0])
        shape = (x.shape[0], convs[0].weight.shape[0], *size)
        require_shape(name, image, shape, "as the convolution's result")
        require_device(name, image, "x", x)
    return [
        Convolution(conv.weight, None, form[0]) for conv, form in zip(convs, forms, strict=True)
    ]


def _is_product(
    x: Tensor, convs: Sequence[Convolution], beside: Beside, *, normalised: bool
) -> bool:
    """Whether the kernels can stand for PyTorch's way."""
    dtype = autocast_dtype(convs[0].weight)
    return (
        backends.choose("norm_relu_conv", x) == "triton"
        and memory_format_of(x) == torch.channels_last
        and (normalised or x.dtype == dtype)
        and all(t is None or t.dtype == dtype for t in beside[:2])
    )


def _measured(
    outs: Sequence[Tensor], beside: Beside, measure: bool, backend: str | None
) -> list[Measured]:
    """The results of PyTorch's way."""
    outs = [went_into(y, beside) for y in outs]
    if not measure:
        return [Measured(out, None) for out in outs]
    statistics = Parts(backend or "reference").statistics
    with torch.no_grad():
        return [Measured(out, tuple(statistics(out.detach(), None)[1:])) for out in outs]


def went_into(y: Tensor, beside: Beside) -> Tensor:
    """The result of convolution `y` with what is beside it."""
    if beside.addend is not None:
        return y + beside.addend
    if beside.trunk is not None:
        return attention_gate(y, beside.trunk, residual=beside.residual)
    return y
