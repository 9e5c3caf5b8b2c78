"""The whole of CBAM as one autograd node that saves x and small maps only.

Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018 (arXiv 1807.06521). The
passes over x are operators; the perceptron on (N, C), the convolution and the normalisation on
(N, 1, H, W) between them are PyTorch's, with their derivatives written out here.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .cbam_backward import GRAD_CHANNEL, GRAD_SPATIAL, GRAD_X
from .cbam_gate import CBAM_GATE
from .channel_pool import CHANNEL_POOL
from .layouts import dense_layout, in_layout_of
from .library import unrecorded
from .spatial_pool import SPATIAL_POOL

aten = torch.ops.aten


class Perceptron(NamedTuple):
    """fc2(relu(fc1(x))) on rows of channels. Biases may be None."""

    weight1: Tensor  # (R, C)
    bias1: Tensor | None
    weight2: Tensor  # (C, R)
    bias2: Tensor | None


class Norm(NamedTuple):
    """Batch normalisation of one channel. The running statistics are updated in training."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor


class Options(NamedTuple):
    """What is no tensor."""

    backend: str
    relu: bool
    mean_first: bool  # the convolution's order of the two maps: (mean, max) instead of (max, mean)
    training: bool  # normalise with the batch's statistics and update the running ones
    momentum: float
    eps: float


def cbam_block(
    x: Tensor,
    shortcut: Tensor | None,
    perceptron: Perceptron,
    conv: Tensor,
    norm: Norm,
    options: Options,
) -> Tensor:
    """CBAM of x (N, C, H, W), and with `shortcut` and `relu` the end of a residual block.

    Args:
        conv: weight (1, 2, k, k) of the convolution from the two maps to spatial attention.

    The small parts are computed in the parameters' dtype, whatever autocast says.
    """
    return _apply(dense_layout(x), shortcut, *perceptron, conv, *norm, *options)


# Dynamo keeps out of it and AOTAutograd traces it: what Dynamo makes of a node that turns autocast
# off leaves it off for all that follows.
@torch.compiler.allow_in_graph
def _apply(*arguments: Any) -> Tensor:
    return _Block.apply(*arguments)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shortcut: Tensor | None, *arguments: Any) -> Tensor:
        out, saved = gated(x, shortcut, *arguments, keep=any(ctx.needs_input_grad))
        ctx.options = block_options(arguments)
        ctx.save_for_backward(x, *saved)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors  # once: checkpointing recomputes at the first access
        return gradients(x, saved, ctx.options, grad, ctx.needs_input_grad)


#: Of a node's arguments after x and shortcut, the tensors: of perceptron, convolution and norm.
_TENSORS = len(Perceptron._fields) + 1 + len(Norm._fields)


def block_options(arguments: Sequence[Any]) -> Options:
    """Of what the node is given after x and shortcut."""
    return Options(*arguments[_TENSORS:])


@unrecorded
def gated(
    x: Tensor, shortcut: Tensor | None, *arguments: Any, keep: bool
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The result, and what `gradients` takes beside x, where that is to `keep`."""
    perceptron, conv = Perceptron(*arguments[:4]), arguments[4]
    norm = Norm(*arguments[5:_TENSORS])
    options = block_options(arguments)
    backend = options.backend
    with torch.autocast(x.device.type, enabled=False):
        mean, maximum, channel_index = CHANNEL_POOL[backend](x)
        _, hidden = _hidden(mean, maximum, perceptron)
        channel = _channel_logits(hidden, perceptron).to(x.dtype)
        maps, spatial_index = SPATIAL_POOL[backend](x, channel)
        map_logits = _conv(maps, conv, options)
        spatial, batch_mean, batch_scale = aten.native_batch_norm(
            map_logits, *norm, options.training, options.momentum, options.eps
        )
        out = CBAM_GATE[backend](x, channel, spatial.to(x.dtype), shortcut, options.relu)
    if not keep:
        return out, ()
    if not options.training:
        # Copies: autograd does not notice when training updates the running statistics.
        running = norm.running_mean.clone(), norm.running_var.clone()
        norm = norm._replace(running_mean=running[0], running_var=running[1])
        batch_mean, batch_scale = running[0], torch.rsqrt(running[1] + options.eps)
    return out, (
        *(mean, maximum, channel_index, maps, spatial_index, map_logits),
        *(*perceptron, conv, *norm),
        *(batch_mean, batch_scale, out if options.relu else None),
    )


@unrecorded
def gradients(
    x: Tensor,
    saved: Sequence[Any],
    options: Options,
    grad: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Of the node's arguments, x and shortcut first, where they are `needed`."""
    mean, maximum, channel_index, maps, spatial_index, map_logits = saved[:6]
    perceptron, conv, norm = Perceptron(*saved[6:10]), saved[10], Norm(*saved[11:15])
    batch_mean, batch_scale, out = saved[15:]
    backend = options.backend
    with torch.autocast(x.device.type, enabled=False):
        grad = in_layout_of(grad, x)
        pools, hidden = _hidden(mean, maximum, perceptron)
        channel = _channel_logits(hidden, perceptron).to(x.dtype)
        spatial = _normalise(map_logits, batch_mean, batch_scale, norm).to(x.dtype)
        grad_spatial, masked = GRAD_SPATIAL[backend](grad, x, channel, spatial, out)
        g = masked if options.relu else grad
        grad_logits, grad_weight, grad_bias = aten.native_batch_norm_backward(
            grad_spatial.to(map_logits.dtype),
            *(
                map_logits,
                norm.weight,
                norm.running_mean,
                norm.running_var,
                batch_mean,
                batch_scale,
            ),
            *(options.training, options.eps, [True, needed[7], needed[8]]),
        )
        grad_maps, grad_conv, _ = aten.convolution_backward(
            grad_logits,
            maps.to(conv.dtype),
            _as_maps(conv, options),
            None,  # no bias
            *(
                [1, 1],
                [conv.shape[2] // 2, conv.shape[3] // 2],
                [1, 1],
            ),  # stride, pad, dilation
            *(False, [0, 0], 1, [True, needed[6], False]),
        )
        grad_maps = grad_maps.to(x.dtype)
        grad_conv = _as_maps(grad_conv, options) if needed[6] else None
        grad_channel = GRAD_CHANNEL[backend](g, x, channel, spatial, grad_maps, spatial_index)
        grad_pools, grad_perceptron = _perceptron_backward(
            grad_channel, pools, hidden, perceptron, needed[2:6]
        )
        grad_pools = grad_pools.to(x.dtype).unflatten(0, (2, -1)).unbind(0)
        grad_x = None
        if needed[0]:
            grad_x = GRAD_X[backend](
                x, g, channel, spatial, grad_maps, spatial_index, *grad_pools, channel_index
            )
    return (
        *(grad_x, g if needed[1] else None, *grad_perceptron, grad_conv),
        *(grad_weight if needed[7] else None, grad_bias if needed[8] else None, None, None),
        *(None for _ in options),
    )


def _normalise(map_logits: Tensor, mean: Tensor, scale: Tensor, norm: Norm) -> Tensor:
    """(map_logits - mean) scale weight + bias, which is cheaper to compute again than to keep."""
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -mean * scale if norm.bias is None else norm.bias - mean * scale
    return torch.addcmul(shift, map_logits, scale)


def _conv(maps: Tensor, conv: Tensor, options: Options) -> Tensor:
    padding = (conv.shape[2] // 2, conv.shape[3] // 2)
    return F.conv2d(maps.to(conv.dtype), _as_maps(conv, options), padding=padding)


def _as_maps(conv: Tensor, options: Options) -> Tensor:
    """The weight for maps in the order (max, mean), or back: flipping is its own inverse."""
    return conv.flip(1) if options.mean_first else conv


def _hidden(mean: Tensor, maximum: Tensor, mlp: Perceptron) -> tuple[Tensor, Tensor]:
    """The input (2N, C) of the perceptron, means before maxima, and its hidden layer (2N, R)."""
    pools = torch.cat([mean, maximum]).to(mlp.weight1.dtype)
    return pools, F.linear(pools, mlp.weight1, mlp.bias1).relu()


def _channel_logits(hidden: Tensor, mlp: Perceptron) -> Tensor:
    """mlp(mean) + mlp(maximum) = (h_mean + h_max) W2ᵀ + 2 b2, from the hidden layer of both."""
    logits = hidden.unflatten(0, (2, -1)).sum(0) @ mlp.weight2.t()
    return logits if mlp.bias2 is None else logits + 2 * mlp.bias2


def _perceptron_backward(
    grad: Tensor, pools: Tensor, hidden: Tensor, mlp: Perceptron, needed: Sequence[bool]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The gradients of `pools` and, where `needed`, of the perceptron's parameters."""
    grad = grad.to(pools.dtype)
    grad_hidden = aten.threshold_backward((grad @ mlp.weight2).repeat(2, 1), hidden, 0)
    return grad_hidden @ mlp.weight1, (
        grad_hidden.t() @ pools if needed[0] else None,
        grad_hidden.sum(0) if needed[1] else None,
        grad.t() @ hidden.unflatten(0, (2, -1)).sum(0) if needed[2] else None,
        2 * grad.sum(0) if needed[3] else None,
    )
