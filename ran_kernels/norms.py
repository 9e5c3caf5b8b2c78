"""The batch normalisation operators with the parameters of a module: helpers of `ran_kernels.nn`.

A network keeps plain `torch.nn.BatchNorm2d` layers, which tools freeze, convert and fold, and calls
these where it would call the layer and the ReLU.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import backends
from .batch_norm import add_batch_norm_relu, batch_norm_add_relu, batch_norm_relu
from .batch_norm_conv import Convolution, add_batch_norm_relu_conv2d, batch_norm_relu_conv2d
from .parts import are_called_plainly, are_plain, is_called_plainly


def norm_relu(norm: nn.Module, x: Tensor) -> Tensor:
    """``relu(norm(x))`` with `ran_kernels.batch_norm_relu`.

    `norm` itself is called, and PyTorch's ReLU, on the reference backend, in torch.export and
    torch.fx, and wherever the operator would pass over something: where `norm` is no plain
    `torch.nn.BatchNorm2d` or `torch.nn.SyncBatchNorm`, or has hooks of any kind, or a momentum of
    None, or holds tensors that are no plain ones. A SyncBatchNorm works on every device here.
    """
    options = _options(norm, x)
    return _plain(norm, x) if options is None else batch_norm_relu(x, **options)


def norm_act(norm: nn.Module, act: nn.Module, x: Tensor) -> Tensor:
    """``act(norm(x))``, as `norm_relu` where `act` is a plain `torch.nn.ReLU` without hooks."""
    if _is_relu(act, x):
        return norm_relu(norm, x)
    out: Tensor = act(norm(x))
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
    options = _options(norm, a, b)
    if options is None:
        total = a + b
        return total, _plain(norm, total)
    return add_batch_norm_relu(a, b, **options)


def norm_add_relu(norm: nn.Module, x: Tensor, shortcut: Tensor) -> Tensor:
    """``relu(norm(x) + shortcut)`` with `ran_kernels.batch_norm_add_relu`.

    Like `norm_relu` through the module where that is needed.
    """
    options = _options(norm, x, shortcut)
    if options is None:
        return F.relu(norm(x) + shortcut)
    return batch_norm_add_relu(x, shortcut, **options)


def norm_relu_conv(
    norm: nn.Module, x: Tensor, *convs: nn.Module, recompute: bool
) -> tuple[Tensor, ...]:
    """``conv(relu(norm(x)))`` for each of `convs`.

    Args:
        recompute: with `ran_kernels.batch_norm_relu_conv2d`, which keeps x alone and computes the
            activation again in the backward, where `norm_relu` would take its operator and every
            convolution is a plain `torch.nn.Conv2d` with zeros around, without hooks of any kind.
            Otherwise, and elsewhere, `norm_relu` and the convolutions themselves.
    """
    taken = _convolutions(convs, x) if recompute else None
    options = _options(norm, x) if taken else None
    if taken and options:
        return batch_norm_relu_conv2d(x, **options, convs=taken)
    activation = norm_relu(norm, x)
    return tuple(conv(activation) for conv in convs)


def add_norm_relu_conv(
    norm: nn.Module, a: Tensor, b: Tensor, *convs: nn.Module, recompute: bool
) -> tuple[Tensor, ...]:
    """``a + b``, then ``conv(relu(norm(a + b)))`` for each of `convs`.

    Args:
        recompute: as `norm_relu_conv`, with `ran_kernels.add_batch_norm_relu_conv2d`.
    """
    taken = _convolutions(convs, a, b) if recompute else None
    options = _options(norm, a, b) if taken else None
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


def _options(norm: nn.Module, *images: Tensor) -> dict[str, Any] | None:
    """What the operator is called with in the place of `norm`, None where it cannot stand for it.

    A batch is counted where one is returned.
    """
    if type(norm) not in (nn.BatchNorm2d, nn.SyncBatchNorm) or not is_called_plainly(norm):
        return None
    assert isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
    if any(isinstance(t, torch.fx.Proxy) or t.dim() != 4 for t in images) or backends.exporting():
        return None
    mean, var, counted = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if not are_plain(*images, norm.weight, norm.bias, mean, var, counted):
        return None
    if norm.momentum is None or backends.choose("batch_norm", images[0]) == "reference":
        return None
    # As PyTorch's forward: statistics that a layer has but does not track are for evaluation alone.
    training = norm.training or (mean is None and var is None)
    tracked = not norm.training or norm.track_running_stats
    n, _, h, w = images[0].shape
    group = _process_group(norm) if training else None
    if training and n * h * w == 1 and group is None:
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
