"""Triton kernels of `ran_kernels.attention_gate`."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import dense_layout, in_layout_of, memory_format_of
from .common import device_of, sigmoid, unit_of, widen

# Elements a program: 4 warps with 16 bytes of bfloat16 a thread.
BLOCK = 1024
# Elements of each tensor that a program holds in registers, at most.
MOST_HELD = 4096
# Programs that keep a GPU of about 140 multiprocessors busy. No property of the GPU at hand, so
# that the sums are the same on all.
ENOUGH_PROGRAMS = 256
# The position of an activation in ran_kernels.attention_gate.ACTIVATIONS.
MIXED = tl.constexpr(0)
CHANNEL = tl.constexpr(1)
CHANNEL_EPS = tl.constexpr(1e-12)
SPATIAL_EPS = tl.constexpr(1e-5)
# As csrc/common/gate.h: what logits are multiplied by where their squares overflow.
SHRINK_32 = tl.constexpr(2.0**-90)
SHRINK_64 = tl.constexpr(2.0**-640)


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


# The activations "channel" and "spatial" standardise groups, as csrc/common/gate.h says:
# z = (logit * shrink - center - rest) * scale.
# A tensor is (outer, members, inner): group q starts at (q // inner) * members * inner + q % inner
# and its members are `inner` apart. A program has GROUPS of them. Groups that fit into registers
# are read once (HELD) and walked there; of others it reads MEMBERS at a time, in every walk. Walks
# are a `while`: the interpreter of Triton 3.6 takes none of its own integers as a `range`'s bound.


@triton.jit
def _in_units(members, inner, groups, ROWS: tl.constexpr, UNIT: tl.constexpr):
    """The sizes, with what the compiler is told of them as in tiling.tile."""
    if ROWS:
        members = members // UNIT * UNIT
    else:
        inner = inner // UNIT * UNIT
        groups = groups // UNIT * UNIT
    return members, inner, groups


@triton.jit
def _tile(start, members, inner, groups, MEMBERS: tl.constexpr, GROUPS: tl.constexpr):
    """Offsets of the next MEMBERS × GROUPS tile, and which of them exist."""
    q = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    m = start + tl.arange(0, MEMBERS).to(tl.int64)
    base = (q // inner) * members * inner + q % inner
    inside = (m < members)[:, None] & (q < groups)[None, :]
    return base[None, :] + m[:, None] * inner, inside


@triton.jit
def _hold(
    tensor, members, inner, groups,
    MEMBERS: tl.constexpr, GROUPS: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """The program's whole groups of a tensor, or None where they are read in every walk."""
    if HELD:
        at, inside = _tile(0, members, inner, groups, MEMBERS, GROUPS)
        held = tl.load(tensor + at, mask=inside, other=0.0)
    else:
        held = None
    return held


@triton.jit
def _read(tensor, held, at, inside):
    """A tile, widened; 0 where there is nothing."""
    return widen(tl.load(tensor + at, mask=inside, other=0.0) if held is None else held)


@triton.jit
def _deviations(
    logits, held, at, inside, shrink, center, rest, ACTIVATION: tl.constexpr
):  # fmt: skip
    """logit * shrink - mean * shrink of a tile."""
    logit = _read(logits, held, at, inside) * shrink[None, :]
    return logit if ACTIVATION == CHANNEL else (logit - center[None, :]) - rest[None, :]


@triton.jit
def _sum(
    logits, held, start, members, inner, groups, shrink, center, rest,
    ACTIVATION: tl.constexpr, MEMBERS: tl.constexpr, GROUPS: tl.constexpr, SQUARES: tl.constexpr,
):  # fmt: skip
    """The sum of a tile's deviations, or of their squares, for each group."""
    at, inside = _tile(start, members, inner, groups, MEMBERS, GROUPS)
    d = _deviations(logits, held, at, inside, shrink, center, rest, ACTIVATION)
    return tl.sum(tl.where(inside, d * d if SQUARES else d, 0.0), axis=0)


@triton.jit
def _sums(
    logits, held, members, inner, groups, shrink, center, rest,
    ACTIVATION: tl.constexpr, MEMBERS: tl.constexpr, GROUPS: tl.constexpr, SQUARES: tl.constexpr,
):  # fmt: skip
    """`_sum` of all tiles. Of a group that is held there is one, without a loop around it, out of
    which Triton 3.6 moves what it must not."""
    if held is None:
        sums = tl.zeros_like(shrink)
        start = 0
        while start < members:
            sums += _sum(
                logits, held, start, members, inner, groups, shrink, center, rest,
                ACTIVATION, MEMBERS, GROUPS, SQUARES,
            )  # fmt: skip
            start += MEMBERS
    else:
        sums = _sum(
            logits, held, 0, members, inner, groups, shrink, center, rest,
            ACTIVATION, MEMBERS, GROUPS, SQUARES,
        )  # fmt: skip
    return sums


@triton.jit
def _moments(
    logits, held, members, inner, groups, shrink, ACTIVATION: tl.constexpr,
    MEMBERS: tl.constexpr, GROUPS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """center, rest and the sum of squared deviations of each group."""
    center = tl.zeros((GROUPS,), ACC)
    rest = tl.zeros((GROUPS,), ACC)
    if ACTIVATION != CHANNEL:
        q = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
        first = (q // inner) * members * inner + q % inner
        shift = widen(tl.load(logits + first, mask=q < groups, other=0.0)) * shrink
        mean = _sums(
            logits, held, members, inner, groups, shrink, shift, rest,
            ACTIVATION, MEMBERS, GROUPS, False,
        ) / members  # fmt: skip
        # shift + mean and what rounding loses of it (Knuth's TwoSum)
        center = shift + mean
        part = center - shift
        rest = (shift - (center - part)) + (mean - part)
    # A second walk: the difference of sums of squares would cancel.
    square = _sums(
        logits, held, members, inner, groups, shrink, center, rest,
        ACTIVATION, MEMBERS, GROUPS, True,
    )  # fmt: skip
    return center, rest, square


@triton.jit
def _standard(
    logits, held, members, inner, groups, ACTIVATION: tl.constexpr,
    MEMBERS: tl.constexpr, GROUPS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """shrink, center, rest and scale of each group."""
    SHRINK: tl.constexpr = SHRINK_64 if logits.dtype.element_ty == tl.float64 else SHRINK_32
    shrink = tl.full((GROUPS,), 1.0, ACC)
    center, rest, square = _moments(
        logits, held, members, inner, groups, shrink, ACTIVATION, MEMBERS, GROUPS, ACC
    )  # fmt: skip
    infinite = (square - square) != 0.0  # NaN, too
    if tl.max(infinite.to(tl.int32), axis=0) > 0:
        shrink = tl.where(infinite, SHRINK, shrink)
        center, rest, square = _moments(
            logits, held, members, inner, groups, shrink, ACTIVATION, MEMBERS, GROUPS, ACC
        )  # fmt: skip
    if ACTIVATION == CHANNEL:
        norm = tl.sqrt(square)
        least = CHANNEL_EPS * shrink
        scale = 1.0 / tl.where(norm < least, least, norm)  # a NaN stays one
    else:
        scale = 1.0 / tl.sqrt(square / members + SPATIAL_EPS * shrink * shrink)
    return shrink, center, rest, scale


@triton.jit
def attention_gate_groups_kernel(
    logits, trunk, out, members, inner, groups,
    RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, ROWS: tl.constexpr, UNIT: tl.constexpr,
    MEMBERS: tl.constexpr, GROUPS: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    members, inner, groups = _in_units(members, inner, groups, ROWS, UNIT)
    held = _hold(logits, members, inner, groups, MEMBERS, GROUPS, HELD)
    shrink, center, rest, scale = _standard(
        logits, held, members, inner, groups, ACTIVATION, MEMBERS, GROUPS, ACC
    )  # fmt: skip
    start = 0
    while start < members:
        at, inside = _tile(start, members, inner, groups, MEMBERS, GROUPS)
        t = _read(trunk, None, at, inside)
        z = _deviations(logits, held, at, inside, shrink, center, rest, ACTIVATION) * scale[None, :]
        mask = z if ACTIVATION == CHANNEL else sigmoid(z)
        result = (1.0 + mask) * t if RESIDUAL else mask * t
        tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)
        start += MEMBERS


@triton.jit
def _grads(
    grad, logits, trunk, g_held, l_held, t_held, at, inside, shrink, center, rest, scale,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """The incoming gradient, z, M and u = d out / d z of a tile. Outside all but z and M are 0."""
    g = _read(grad, g_held, at, inside)
    t = _read(trunk, t_held, at, inside)
    z = _deviations(logits, l_held, at, inside, shrink, center, rest, ACTIVATION) * scale[None, :]
    if ACTIVATION == CHANNEL:
        mask = z
        u = g * t
    else:
        mask = sigmoid(z)
        u = g * t * (mask * (1.0 - mask))
    return g, z, mask, u


@triton.jit
def attention_gate_groups_backward_kernel(
    grad, logits, trunk, grad_logits, grad_trunk, members, inner, groups,
    RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, ROWS: tl.constexpr, UNIT: tl.constexpr,
    MEMBERS: tl.constexpr, GROUPS: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if grad_trunk.dtype.element_ty == tl.float64 else tl.float32
    members, inner, groups = _in_units(members, inner, groups, ROWS, UNIT)
    t_held = _hold(trunk, members, inner, groups, MEMBERS, GROUPS, HELD)
    l_held = _hold(logits, members, inner, groups, MEMBERS, GROUPS, HELD)
    shrink, center, rest, scale = _standard(
        logits, l_held, members, inner, groups, ACTIVATION, MEMBERS, GROUPS, ACC
    )  # fmt: skip
    # After the moments, or some chips' registers would not do.
    g_held = _hold(grad, members, inner, groups, MEMBERS, GROUPS, HELD)
    first = tl.zeros((GROUPS,), ACC)
    second = tl.zeros((GROUPS,), ACC)
    start = 0
    while start < members:
        at, inside = _tile(start, members, inner, groups, MEMBERS, GROUPS)
        g, z, mask, u = _grads(
            grad, logits, trunk, g_held, l_held, t_held, at, inside, shrink, center, rest, scale,
            ACTIVATION,
        )  # fmt: skip
        first += tl.sum(u, axis=0)
        second += tl.sum(tl.where(inside, u * z, 0.0), axis=0)
        start += MEMBERS
    # d out / d logit = shrink * scale * (u - first - z * second)
    #   channel: first = 0,           second = sum(u z), or 0 where the norm was clamped
    #   spatial: first = sum(u) / R,  second = sum(u z) / R
    if ACTIVATION == CHANNEL:
        first = tl.zeros((GROUPS,), ACC)
        second = tl.where(scale * shrink >= 1.0 / CHANNEL_EPS, 0.0, second)
    else:
        first = first / members
        second = second / members
    start = 0
    while start < members:
        at, inside = _tile(start, members, inner, groups, MEMBERS, GROUPS)
        g, z, mask, u = _grads(
            grad, logits, trunk, g_held, l_held, t_held, at, inside, shrink, center, rest, scale,
            ACTIVATION,
        )  # fmt: skip
        to_logits = (scale * shrink)[None, :] * (u - first[None, :] - z * second[None, :])
        to_trunk = g * (1.0 + mask) if RESIDUAL else g * mask
        tl.store(grad_logits + at, to_logits.to(grad_logits.dtype.element_ty), mask=inside)
        tl.store(grad_trunk + at, to_trunk.to(grad_trunk.dtype.element_ty), mask=inside)
        start += MEMBERS


def _groups(t: Tensor, activation: int) -> tuple[int, int, int]:
    """members, inner and the number of groups of a contiguous or channels_last tensor."""
    n, c, h, w = t.shape
    channels_last = memory_format_of(t) == torch.channels_last
    if activation == CHANNEL.value:
        return (c, 1, n * h * w) if channels_last else (c, h * w, n * h * w)
    return (h * w, c, n * c) if channels_last else (h * w, 1, n * c)


def _tile_sizes(members: int, inner: int, groups: int) -> dict[str, int]:
    """A tile is wide where memory is contiguous: along the members of rows, across the columns.

    Few columns are cut into strips as narrow as memory's sectors, so that there are more programs.
    A thread has at most 16 elements of a row, and 8 of columns, each with a mean and a scale of
    its own.
    """
    whole = triton.next_power_of_2(members)
    if inner > 1:
        wide = groups >= 32 * ENOUGH_PROGRAMS
        columns = 32 if wide and whole * 32 <= MOST_HELD else 16
        held, looped = (whole, columns), (32, 32) if wide else (64, 16)
    else:
        held, looped = (whole, max(1, BLOCK // whole)), (BLOCK, 1)
    holds = held[0] * held[1] <= MOST_HELD
    tile = held if holds else looped
    line = members if inner == 1 else inner
    return {
        "ROWS": inner == 1,
        "UNIT": unit_of(line),
        "MEMBERS": tile[0],
        "GROUPS": tile[1],
        "HELD": holds,
        "num_warps": max(4, tile[0] * tile[1] // (32 * (16 if inner == 1 else 8))),
    }


def attention_gate(logits: Tensor, trunk: Tensor, residual: bool, activation: int) -> Tensor:
    """Implements ``ran::attention_gate.triton``."""
    out = torch.empty_like(trunk if activation == MIXED.value else dense_layout(trunk))
    if out.numel() == 0:
        return out
    buffers = (in_layout_of(logits, out), in_layout_of(trunk, out), out)
    with device_of(out):
        if activation == MIXED.value:
            grid = (triton.cdiv(out.numel(), BLOCK),)
            attention_gate_kernel[grid](*buffers, out.numel(), RESIDUAL=residual, BLOCK=BLOCK)
        else:
            _launch_groups(attention_gate_groups_kernel, buffers, residual, activation)
    return out


def attention_gate_backward(
    grad: Tensor, logits: Tensor, trunk: Tensor, residual: bool, activation: int
) -> tuple[Tensor, Tensor]:
    """Implements ``ran::attention_gate_backward.triton``: the gradients of logits and trunk."""
    grad_trunk = torch.empty_like(trunk if activation == MIXED.value else dense_layout(trunk))
    grad_logits = torch.empty_like(grad_trunk)
    if trunk.numel() == 0:
        return grad_logits, grad_trunk
    inputs = (in_layout_of(t, grad_trunk) for t in (grad, logits, trunk))
    buffers = (*inputs, grad_logits, grad_trunk)
    with device_of(trunk):
        if activation == MIXED.value:
            grid = (triton.cdiv(trunk.numel(), BLOCK),)
            attention_gate_backward_kernel[grid](
                *buffers, trunk.numel(), RESIDUAL=residual, BLOCK=BLOCK
            )
        else:
            _launch_groups(attention_gate_groups_backward_kernel, buffers, residual, activation)
    return grad_logits, grad_trunk


def _launch_groups(
    kernel: Any, buffers: tuple[Tensor, ...], residual: bool, activation: int
) -> None:
    members, inner, groups = _groups(buffers[-1], activation)
    sizes = _tile_sizes(members, inner, groups)
    kernel[(triton.cdiv(groups, sizes["GROUPS"]),)](
        *buffers, members, inner, groups, RESIDUAL=residual, ACTIVATION=activation, **sizes
    )
