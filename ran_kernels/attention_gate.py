"""The gate of the attention module: the trunk's features times the soft mask.

Wang et al., "Residual Attention Network for Image Classification", CVPR 2017 (arXiv 1704.06904).
"""

from typing import Any

import torch
from torch import Tensor

from . import backends, reference
from .checks import promote, require_choice, require_device, require_shape, require_tensor
from .layouts import dense_layout
from .library import define

ACTIVATIONS = ("mixed", "channel", "spatial")


def attention_gate(
    logits: Tensor, trunk: Tensor, *, residual: bool = True, activation: str = "mixed"
) -> Tensor:
    """``(1 + M) * trunk``, or ``M * trunk`` without `residual`, with the mask M made from `logits`.

    Equal to ``(1 + torch.sigmoid(logits)) * trunk`` by default, in one pass over memory; the
    backward pass reads the gradient, logits and trunk once and saves nothing else.

    Args:
        logits: the soft mask branch's output, (N, C, H, W).
        trunk: the trunk branch's output, (N, C, H, W).
        residual: attention residual learning, equation 3; without it, naive attention, equation 1.
        activation: how the mask is made (the paper's section 3.2, equations 4 to 6):
            "mixed": the sigmoid of each value;
            "channel": each value over the L2 norm of the channels at its position (at least 1e-12);
            "spatial": the sigmoid of the values standardised within each channel's map, with the
            population variance plus 1e-5 under the root.

    Returns:
        (N, C, H, W), in the dtype that PyTorch's promotion gives for both, with trunk's strides
        where trunk is dense.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: shapes or devices differ, or the activation is unknown.
        BackendError: a backend was asked for that cannot run this.
    """
    require_tensor("trunk", trunk)
    require_tensor("logits", logits)
    require_shape("logits", logits, trunk.shape, "as trunk")
    require_device("logits", logits, "trunk", trunk)
    require_choice("activation", activation, ACTIVATIONS)
    logits, trunk = promote(logits, trunk)
    kind = f"attention_gate[{activation}]"
    backend = backends.choose("attention_gate", trunk, kind=kind)
    if backend == "reference":
        return reference.attention_gate(logits, trunk, residual=residual, activation=activation)
    return _FORWARD[backend](logits, trunk, residual, ACTIVATIONS.index(activation))


def attention_mask(logits: Tensor, activation: str = "mixed") -> Tensor:
    """The mask M that `attention_gate` makes from `logits`, for looking at.

    Args:
        logits: (N, C, H, W).
        activation: "mixed", "channel" or "spatial", as for `attention_gate`.

    Returns:
        (N, C, H, W). In [0, 1], except "channel", which is in [-1, 1].

    Raises:
        TypeError: `logits` is no floating-point tensor.
        ValueError: `logits` has not four dimensions, or the activation is unknown.
    """
    require_tensor("logits", logits)
    require_choice("activation", activation, ACTIVATIONS)
    return reference.attention_mask(logits, activation)


def _result_like(trunk: Tensor, activation: int) -> Tensor:
    """What the kernels lay their results out as: see csrc/attention_gate.cpp."""
    return torch.empty_like(trunk if ACTIVATIONS[activation] == "mixed" else dense_layout(trunk))


def _fake(logits: Tensor, trunk: Tensor, residual: bool, activation: int) -> Tensor:
    return _result_like(trunk, activation)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, trunk, ctx.residual, ctx.activation = inputs
    ctx.save_for_backward(logits, trunk)


def _backward(backend: str, ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    logits, trunk = ctx.saved_tensors
    grads = _BACKWARD[backend](grad, logits, trunk, ctx.residual, ctx.activation)
    return (*grads, None, None)


def _fake_backward(
    grad: Tensor, logits: Tensor, trunk: Tensor, residual: bool, activation: int
) -> tuple[Tensor, Tensor]:
    grad_trunk = _result_like(trunk, activation)
    return torch.empty_like(grad_trunk), grad_trunk


_FORWARD = define(
    "attention_gate",
    "(Tensor logits, Tensor trunk, bool residual, int activation) -> Tensor",
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
_BACKWARD = define(
    "attention_gate_backward",
    "(Tensor grad, Tensor logits, Tensor trunk, bool residual, int activation) -> (Tensor, Tensor)",
    fake=_fake_backward,
    file="attention_gate",
)
