"""Triton kernels of `ran_kernels.attention_gate`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import device_of, in_layout_of, sigmoid, widen

# Elements a program: 4 warps with 16 bytes of bfloat16 a thread.
BLOCK = 1024


@triton.jit
def attention_gate_kernel(logits, trunk, out, n, RESIDUAL: tl.constexpr, BLOCK: tl.constexpr):
    # 64-bit before it is multiplied: a tensor may have more than 2**31 elements.
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    mask = sigmoid(widen(tl.load(logits + index, mask=inside)))
    t = widen(tl.load(trunk + index, mask=inside))
    result = (1.0 + mask) * t if RESIDUAL else mask * t
    tl.store(out + index, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def attention_gate_backward_kernel(
    grad, logits, trunk, grad_logits, grad_trunk, n, RESIDUAL: tl.constexpr, BLOCK: tl.constexpr
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    g = widen(tl.load(grad + index, mask=inside))
    mask = sigmoid(widen(tl.load(logits + index, mask=inside)))
    t = widen(tl.load(trunk + index, mask=inside))
    # d out / d logits = T M (1 - M);  d out / d T = (1 +) M
    to_logits = g * t * (mask * (1.0 - mask))
    to_trunk = g * (1.0 + mask) if RESIDUAL else g * mask
    tl.store(grad_logits + index, to_logits.to(grad_logits.dtype.element_ty), mask=inside)
    tl.store(grad_trunk + index, to_trunk.to(grad_trunk.dtype.element_ty), mask=inside)


def attention_gate(logits: Tensor, trunk: Tensor, residual: bool) -> Tensor:
    """Implements ``ran::attention_gate.triton``."""
    out = torch.empty_like(trunk)
    if out.numel():
        with device_of(out):
            attention_gate_kernel[(triton.cdiv(out.numel(), BLOCK),)](
                in_layout_of(logits, out),
                in_layout_of(trunk, out),
                out,
                out.numel(),
                RESIDUAL=residual,
                BLOCK=BLOCK,
            )
    return out


def attention_gate_backward(
    grad: Tensor, logits: Tensor, trunk: Tensor, residual: bool
) -> tuple[Tensor, Tensor]:
    """Implements ``ran::attention_gate_backward.triton``: the gradients of logits and trunk."""
    grad_trunk = torch.empty_like(trunk)
    grad_logits = torch.empty_like(grad_trunk)
    if trunk.numel():
        with device_of(trunk):
            attention_gate_backward_kernel[(triton.cdiv(trunk.numel(), BLOCK),)](
                in_layout_of(grad, grad_trunk),
                in_layout_of(logits, grad_trunk),
                in_layout_of(trunk, grad_trunk),
                grad_logits,
                grad_trunk,
                trunk.numel(),
                RESIDUAL=residual,
                BLOCK=BLOCK,
            )
    return grad_logits, grad_trunk
