"""The batch normalisation operators with the parameters of a module: helpers of `ran_kernels.nn`.

A network keeps plain `torch.nn.BatchNorm2d` layers, which tools freeze, convert and fold, and calls
these where it would call the layer and the ReLU. What they are given may be a `Measured`, a tensor
whose statistics are known already.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import backends
from .batch_norm import add_batch_norm_relu, batch_norm, batch_norm_add_relu, batch_norm_relu
from .batch_norm_conv import Convolution, add_batch_norm_relu_conv2d, batch_norm_relu_conv2d
from .batch_norm_node import values_of
from .layouts import memory_format_of
from .norm_relu_conv import Measured, conv_statistics, went_into
from .norm_relu_conv import norm_relu_conv as norm_relu_product
from .norm_relu_conv_node import Beside
from .parts import are_called_plainly, are_plain, is_called_plainly


def norm_relu(norm: nn.Module, x: Tensor | Measured) -> Tensor:
    """``relu(norm(x))`` with `ran_kernels.batch_norm_relu`.

    `norm` itself is called, and PyTorch's ReLU, on the reference backend, in torch.export,
    torch.jit.trace and torch.fx, and wherever the operator would pass over something: where `norm`
    is no plain `torch.nn.BatchNorm2d` or `torch.nn.SyncBatchNorm`, or has hooks of any kind, or a
    momentum of None, or holds tensors that are no plain ones. A SyncBatchNorm works on every device
    here.
    """
    x, known = parted(x)
    options = options_of(norm, x)
    return _plain(norm, x) if options is None else batch_norm_relu(x, **options, **known)


def norm_measured(norm: nn.Module, x: Tensor | Measured) -> Tensor:
    """``norm(x)``, with `ran_kernels.batch_norm` where x is measured; as `norm_relu` otherwise."""
    x, known = parted(x)
    options = options_of(norm, x) if known else None
    if options is None:
        out: Tensor = norm(x)
        return out
    return batch_norm(x, **options, **known)


def parted(x: Tensor | Measured) -> tuple[Tensor, dict[str, Any]]:
    """The tensor, and what an operator is told of it."""
    if not isinstance(x, Measured):
        return x, {}
    return x.value, {} if x.statistics is None else {"statistics": x.statistics}


def norm_act(norm: nn.Module, act: nn.Module, x: Tensor | Measured) -> Tensor:
    """``act(norm(x))``, as `norm_relu` where `act` is a plain `torch.nn.ReLU` without hooks."""
    value, _ = parted(x)
    if _is_relu(act, value):
        return norm_relu(norm, x)
    out: Tensor = act(norm(value))
    return out


def add_norm_act(norm: nn.Module, act: nn.Module, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``a + b`` and ``act(norm(a + b))``, as `add_norm_relu` likewise."""
    if _is_relu(act, a):
        return add_norm_relu(norm, a, b)
    total = a + b
    return total, act(norm(total))


def _is_relu(act: nn.Module, x: Tensor) -> bool:
    # torch.fx sees the module.
    return type(act) is nn.ReLU and is_called_plainly(act) and not isinstance(x, torch.fx.Proxy)


def add_norm_relu(norm: nn.Module, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``a + b`` and ``relu(norm(a + b))`` with `ran_kernels.add_batch_norm_relu`.

    Like `norm_relu` through the module where that is needed.
    """
    options = options_of(norm, a, b)
    if options is None:
        total = a + b
        return total, _plain(norm, total)
    return add_batch_norm_relu(a, b, **options)


def norm_add_relu(norm: nn.Module, x: Tensor | Measured, shortcut: Tensor) -> Tensor:
    """``relu(norm(x) + shortcut)`` with `ran_kernels.batch_norm_add_relu`.

    Like `norm_relu` through the module where that is needed.
    """
    x, known = parted(x)
    options = options_of(norm, x, shortcut)
    if options is None:
        return F.relu(norm(x) + shortcut)
    return batch_norm_add_relu(x, shortcut, **options, **known)


def norm_relu_conv(
    norm: nn.Module, x: Tensor | Measured, *convs: nn.Module, recompute: bool
) -> tuple[Tensor, ...]:
    """``conv(relu(norm(x)))`` for each of `convs`.

    Args:
        recompute: with `ran_kernels.batch_norm_relu_conv2d`, which keeps x alone and computes the
            activation again in the backward, where `norm_relu` would take its operator and every
            convolution is a plain `torch.nn.Conv2d` with zeros around, without hooks of any kind.
            Otherwise, and elsewhere, `norm_relu` and the convolutions themselves.
    """
    value, known = parted(x)
    taken = _convolutions(convs, value) if recompute else None
    options = options_of(norm, value) if taken else None
    if taken and options:
        return batch_norm_relu_conv2d(value, **options, **known, convs=taken)
    activation = norm_relu(norm, x)
    return tuple(conv(activation) for conv in convs)


def are_products(x: Tensor) -> bool:
    """Whether 1×1 convolutions of x may be made by `measured_convs`' kernels."""
    if isinstance(x, torch.fx.Proxy) or x.dim() != 4 or backends.exporting():
        return False
    # Asked for the native backend, networks have it where it is.
    if backends.current() == "native" or memory_format_of(x) != torch.channels_last:
        return False
    return backends.choose("norm_relu_conv", x) == "triton"


def measured_convs(
    norm: nn.Module | None,
    x: Tensor | Measured,
    *convs: nn.Module,
    addend: Tensor | None = None,
    trunk: Tensor | None = None,
    residual: bool = True,
    recompute: bool,
    measure: bool = True,
) -> tuple[Tensor, list[Measured]]:
    """x itself, and ``conv(relu(norm(x))) + addend`` of each of `convs`; without `norm` of x.

    With `trunk`, beside a norm, it is `ran_kernels.attention_gate` of a convolution's result.

    With `ran_kernels.norm_relu_conv` or `conv_statistics` where `norm_relu_conv` would take its
    operator and each of `convs` is a plain 1×1 convolution without a bias. Elsewhere as that does,
    and what it gives is not measured.

    Args:
        recompute: as `norm_relu_conv`, elsewhere.
        measure: whether a normalisation follows, which asks for statistics in training.
    """
    value, known = parted(x)
    taken = _convolutions(convs, value) if are_products(value) else None
    beside = Beside(addend, trunk, residual)
    if taken and all(map(_is_product, taken)) and are_plain(addend, trunk):
        if norm is None and trunk is None and are_plain(value):
            measure = measure and any(conv.training for conv in convs)
            return conv_statistics(value, convs=taken, addend=addend, measure=measure)
        options = None if norm is None else options_of(norm, value)
        if options is not None:
            options |= {**known, "convs": taken, **beside._asdict(), "measure": measure}
            return norm_relu_product(value, **options)
    if norm is None:
        outs = tuple(conv(value) for conv in convs)
    else:
        outs = norm_relu_conv(norm, x, *convs, recompute=recompute)
    return value, [Measured(went_into(y, beside), None) for y in outs]


def _is_product(conv: Convolution) -> bool:
    plain = conv.bias is None and conv.groups == 1 and conv.padding == (0, 0)
    stride = conv.stride
    return plain and conv.weight.shape[2:] == (1, 1) and stride in ((1, 1), (2, 2))


def add_norm_relu_conv(
    norm: nn.Module, a: Tensor, b: Tensor, *convs: nn.Module, recompute: bool
) -> tuple[Tensor, ...]:
    """``a + b``, then ``conv(relu(norm(a + b)))`` for each of `convs`.

    Args:
        recompute: as `norm_relu_conv`, with `ran_kernels.add_batch_norm_relu_conv2d`.
    """
    taken = _convolutions(convs, a, b) if recompute else None
    options = options_of(norm, a, b) if taken else None
    if taken and options:
        return add_batch_norm_relu_conv2d(a, b, **options, convs=taken)
    total, activation = add_norm_relu(norm, a, b)
    return total, *(conv(activation) for conv in convs)


def _convolutions(convs: Sequence[nn.Module], *images: Tensor) -> list[Convolution] | None:
    """What the operator is given for `convs`, None where it cannot stand for one of them."""
    if any(isinstance(t, torch.fx.Proxy) for t in images) or not are_called_plainly(convs):
        return None
    taken = []
    for conv in convs:
        # Exactly so: what is derived from it, or was put in its place, may compute something else.
        if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros":
            return None
        if isinstance(conv.padding, str) or not are_plain(conv.weight, conv.bias):
            return None
        form: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)
        taken.append(Convolution(conv.weight, conv.bias, *form))
    return taken


def _plain(norm: nn.Module, x: Tensor) -> Tensor:
    # Not in place where a stand-in may give x itself, or a hook keeps the result or its gradient.
    own = isinstance(norm, _BatchNorm) and is_called_plainly(norm)
    return F.relu(norm(x), inplace=own)


def options_of(norm: nn.Module, *images: Tensor) -> dict[str, Any] | None:
    """What the operator is called with in the place of `norm`, None where it cannot stand for it.

    A batch is counted where one is returned.
    """
    if type(norm) not in (nn.BatchNorm2d, nn.SyncBatchNorm) or not is_called_plainly(norm):
        return None
    assert isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
    if any(isinstance(t, torch.fx.Proxy) or t.dim() != 4 for t in images) or backends.exporting():
        return None
    if any(t.shape != images[0].shape for t in images):
        return None  # a sum spreads one of its terms
    mean, var, counted = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if not are_plain(*images, norm.weight, norm.bias, mean, var, counted):
        return None
    if norm.momentum is None or backends.choose("batch_norm", images[0]) == "reference":
        return None
    # As PyTorch's forward: statistics that a layer has but does not track are for evaluation alone.
    training = norm.training or (mean is None and var is None)
    tracked = not norm.training or norm.track_running_stats
    group = _process_group(norm) if training else None
    if training and values_of(images[0]) == 1 and group is None:
        return None  # the layer says what is wrong
    if norm.training and norm.track_running_stats and counted is not None:
        counted.add_(1)
    return {
        "running_mean": mean if tracked else None,
        "running_var": var if tracked else None,
        "weight": norm.weight,
        "bias": norm.bias,
        "training": training,
        "momentum": norm.momentum,
        "eps": norm.eps,
        "process_group": group,
    }


def _process_group(norm: nn.Module) -> Any:
    """The group that a SyncBatchNorm takes its statistics over, None where it is this process."""
    if not isinstance(norm, nn.SyncBatchNorm) or not norm.training:
        return None
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return norm.process_group or distributed.group.WORLD
