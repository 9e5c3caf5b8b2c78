"""Triton kernels of `ran_kernels.upsample` and `ran_kernels.upsample_add`.

Forward, a program works on a tile of positions × channels of one image. Taps depend on the position
alone; which of the two lies side by side in memory is a constant, and the tile's shape follows it.
Backward, the gradient is gathered along the height and then along the width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import empty_image, memory_format_of
from .common import device_of, unit_of, widen

# Not compiled in, not even where they are 1: every ratio runs the same code.
SIZES = ("h", "w", "height", "width", "over_y", "under_y", "over_x", "under_x")


@triton.jit
def quotient(over, under, like):
    """over / under in the type that `like` is computed in, correctly rounded in float32 too."""
    exact = over.to(tl.float64) / under.to(tl.float64)
    return exact if like.dtype.element_ty == tl.float64 else exact.to(tl.float32)


@triton.jit
def tap_of(target, source_size, target_size, scale, ALIGN: tl.constexpr):
    """First and second source index and the second's weight, as csrc/common/bilinear.h has them."""
    # Product and sum are rounded once. Both are exact in float64 where the scale has the bits of a
    # float32; of the bits that a float64 has besides, the product is added last.
    shift = 0.0 if ALIGN else 0.5
    exact = scale.to(tl.float64)
    high = exact.to(tl.float32).to(tl.float64)
    place = target.to(tl.float64) + shift
    position = ((high * place - shift) + (exact - high) * place).to(scale.dtype)
    position = tl.maximum(position, 0.0)
    first = tl.minimum(position.to(tl.float32).to(tl.int32), source_size - 1)
    weight = tl.minimum(tl.maximum(position - first.to(scale.dtype), 0.0), 1.0)
    second = tl.minimum(first + 1, source_size - 1)
    same = source_size == target_size
    target = target.to(tl.int32)
    return (
        tl.where(same, target, first),
        tl.where(same, target, second),
        tl.where(same, 0.0, weight),
    )


@triton.jit
def first_target(source, step, ALIGN: tl.constexpr):
    """The first target that may read `source`, whose first tap is source - 1 then; never too late.

    Targets before the first source element's centre read elements 0 and 1.
    """
    before = source.to(step.dtype) - 1.0
    target = tl.floor(before * step if ALIGN else (before + 0.5) * step - 0.5)
    return tl.where(source <= 1, 0.0, tl.maximum(target, 0.0)).to(tl.int32)


@triton.jit
def divided(start, size, COUNT: tl.constexpr):
    """Quotients and remainders by `size`, below 2**31, of start, ..., start + COUNT - 1.

    One division in 64 bits, which no GPU has an instruction for, and the others in 32.
    """
    place = (start % size).to(tl.uint32) + tl.arange(0, COUNT).to(tl.uint32)
    narrow = size.to(tl.uint32)
    return start // size + (place // narrow).to(tl.int64), (place % narrow).to(tl.int32)


@triton.jit
def tile(channels, positions, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr):
    """The image, the first position and the channels of this program, and which elements exist."""
    # 64-bit before anything is multiplied: a tensor may have more than 2**31 elements.
    program = tl.program_id(0).to(tl.int64)
    channel_tiles = tl.cdiv(channels, CHANNELS)
    position_tiles = tl.cdiv(positions, POSITIONS)
    channel = program % channel_tiles * CHANNELS + tl.arange(0, CHANNELS)
    program = program // channel_tiles
    start = program % position_tiles * POSITIONS
    exists = start + tl.arange(0, POSITIONS) < positions
    inside = exists[:, None] & (channel < channels)[None, :]
    return program // position_tiles, start, channel, inside


@triton.jit
def offsets(image, position, channel, channels, positions, CHANNELS_LAST: tl.constexpr):
    """Where the elements [position, channel] of an image lie."""
    if CHANNELS_LAST:
        return (image * positions + position)[:, None] * channels + channel[None, :]
    return (image * channels + channel)[None, :] * positions + position[:, None]


@triton.jit(do_not_specialize=SIZES)
def upsample_kernel(
    x, skip, out, channels, positions,
    h, w, height, width, over_y, under_y, over_x, under_x,
    ADD: tl.constexpr, ALIGN: tl.constexpr, CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    if CHANNELS_LAST:  # as tiling.tile tells the compiler
        channels = channels // UNIT * UNIT
    else:
        positions = positions // UNIT * UNIT
    image, start, channel, inside = tile(channels, positions, POSITIONS, CHANNELS)
    row, column = divided(start, width, POSITIONS)
    top, bottom, low = tap_of(row, h, height, quotient(over_y, under_y, out), ALIGN)
    left, right, far = tap_of(column, w, width, quotient(over_x, under_x, out), ALIGN)
    sources = h.to(tl.int64) * w
    upper, lower = top.to(tl.int64) * w, bottom.to(tl.int64) * w
    at = offsets(image, upper + left, channel, channels, sources, CHANNELS_LAST)
    a = widen(tl.load(x + at, mask=inside))
    at = offsets(image, upper + right, channel, channels, sources, CHANNELS_LAST)
    b = widen(tl.load(x + at, mask=inside))
    at = offsets(image, lower + left, channel, channels, sources, CHANNELS_LAST)
    c = widen(tl.load(x + at, mask=inside))
    at = offsets(image, lower + right, channel, channels, sources, CHANNELS_LAST)
    d = widen(tl.load(x + at, mask=inside))
    far, low = far[:, None], low[:, None]
    above = (1.0 - far) * a + far * b
    below = (1.0 - far) * c + far * d
    result = (1.0 - low) * above + low * below
    position = start + tl.arange(0, POSITIONS)
    at = offsets(image, position, channel, channels, positions, CHANNELS_LAST)
    if ADD:
        result += widen(tl.load(skip + at, mask=inside))
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=("source_size", "target_size", "over", "under"))
def upsample_backward_kernel(
    grad, grad_x, rows, inner, source_size, target_size, over, under,
    STEPS: tl.constexpr, ALIGN: tl.constexpr, UNIT: tl.constexpr,
    ROWS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    # Along one axis: grad is (outer, target_size, inner), grad_x is (outer, source_size, inner) and
    # has outer · source_size rows. One axis after the other takes the sum of their steps, both at
    # once the product, most of which would be masked off.
    inner = inner // UNIT * UNIT  # as tiling.tile tells the compiler
    program = tl.program_id(0).to(tl.int64)
    inner_tiles = tl.cdiv(inner, INNER)
    place = program % inner_tiles * INNER + tl.arange(0, INNER)
    start = program // inner_tiles * ROWS
    row = start + tl.arange(0, ROWS)
    inside = (row < rows)[:, None] & (place < inner)[None, :]
    outer, source = divided(start, source_size, ROWS)
    scale = quotient(over, under, grad_x)
    # `over` is 0 where every target reads element 0, and the step between sources is not used.
    first = first_target(source, quotient(under, tl.maximum(over, 1), grad_x), ALIGN)
    total = tl.zeros((ROWS, INNER), scale.dtype)
    for i in range(STEPS):
        target = first + i
        upper, lower, low = tap_of(target, source_size, target_size, scale, ALIGN)
        reads = (target < target_size) & ((upper == source) | (lower == source))
        at = (outer * target_size + target)[:, None] * inner + place[None, :]
        g = widen(tl.load(grad + at, mask=inside & reads[:, None], other=0.0))
        total += tl.where(upper == source, 1.0 - low, low)[:, None] * g
        # Both taps may be this element. Adding up the weights would hide that 0 · inf is NaN.
        total += tl.where((upper == lower)[:, None], low[:, None] * g, 0.0)
    tl.store(
        grad_x + row[:, None] * inner + place[None, :],
        total.to(grad_x.dtype.element_ty),
        mask=inside,
    )


def upsample(x: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    """Implements ``ran::upsample.triton``."""
    out = empty_image((*x.shape[:2], height, width), x)
    _interpolate(x, None, out, align_corners)
    return out


def upsample_add(x: Tensor, skip: Tensor, align_corners: bool) -> Tensor:
    """Implements ``ran::upsample_add.triton``."""
    out = empty_image(skip.shape, skip)
    _interpolate(x, skip, out, align_corners)
    return out


def upsample_backward(grad: Tensor, h: int, w: int, align_corners: bool) -> Tensor:
    """Implements ``ran::upsample_backward.triton``: the gradient of x."""
    n, channels, height, width = grad.shape
    layout = memory_format_of(grad)
    grad_x = empty_image((n, channels, h, w), grad)
    if grad_x.numel() == 0:
        return grad_x
    # The two layouts differ in what lies outside and inside of an axis, and in nothing else.
    outside, inside = (n, channels) if layout == torch.channels_last else (n * channels, 1)
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    summed = torch.empty(outside * h * width * inside, dtype=dtype, device=grad.device)
    with device_of(grad):
        _gather(
            grad.contiguous(memory_format=layout),
            summed,
            (outside, h, width * inside),
            height,
            align_corners,
        )
        _gather(summed, grad_x, (outside * h, w, inside), width, align_corners)
    return grad_x


def _gather(
    grad: Tensor, grad_x: Tensor, shape: tuple[int, int, int], target: int, align_corners: bool
) -> None:
    outer, source, inner = shape
    over, under = _scale(source, target, align_corners)
    block = min(256, triton.next_power_of_2(inner))
    rows = outer * source
    upsample_backward_kernel[(triton.cdiv(rows, 1024 // block) * triton.cdiv(inner, block),)](
        grad,
        grad_x,
        rows,
        inner,
        source,
        target,
        over,
        under,
        STEPS=_steps(source, over, under, target),
        ALIGN=align_corners,
        UNIT=unit_of(inner),
        ROWS=1024 // block,
        INNER=block,
    )


def _interpolate(x: Tensor, skip: Tensor | None, out: Tensor, align_corners: bool) -> None:
    if out.numel() == 0:
        return
    layout = memory_format_of(x if skip is None else skip)
    x = x.contiguous(memory_format=layout)
    n, channels, height, width = out.shape
    h, w = x.shape[2:]
    # Channels of a tile of 1024 elements.
    last = layout == torch.channels_last
    block = min(128, triton.next_power_of_2(channels)) if last else 8
    line = channels if last else height * width
    tiles = triton.cdiv(channels, block) * triton.cdiv(height * width, 1024 // block)
    with device_of(out):
        upsample_kernel[(n * tiles,)](
            x,
            x if skip is None else skip.contiguous(memory_format=layout),
            out,
            channels,
            height * width,
            h,
            w,
            height,
            width,
            *_scale(h, height, align_corners),
            *_scale(w, width, align_corners),
            ADD=skip is not None,
            ALIGN=align_corners,
            CHANNELS_LAST=last,
            UNIT=unit_of(line),
            POSITIONS=1024 // block,
            CHANNELS=block,
        )


def _scale(source: int, target: int, align_corners: bool) -> tuple[int, int]:
    """Numerator and denominator of the distance between targets, in source elements."""
    if not align_corners:
        return source, target
    return (source - 1, target - 1) if target > 1 else (0, 1)


def _steps(source: int, over: int, under: int, target: int) -> int:
    """From `first_target` on, the most targets that may read one source element."""
    if source == 1 or over == 0:
        return target
    # Two source elements wide, and two and a half where they begin before the first centre.
    return min(target, max(2 * under // over + 2, 5 * under // (2 * over) + 1))
