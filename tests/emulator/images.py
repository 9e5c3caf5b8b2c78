"""Random cases of upsample, upsample_add and their backward."""

import numpy as np

from .formats import BYTES, COMPUTED, COMPUTING, Array
from .pools import Features
from .trial import Trial, case, described, finite

CHANNELS = (1, 2, 3, 4, 5, 7, 8, 16, 24, 33, 64, 80, 128, 256, 512, 2048)
SOURCES = (1, 2, 3, 4, 5, 7, 8, 13, 14, 28)
TARGETS = (1, 2, 3, 4, 7, 8, 11, 14, 16, 28, 29, 32, 56, 64)
MOST = 40000
Taps = tuple[Array, Array, Array, Array]


def fused(a: float, b: Array, c: float, computed: type) -> Array:
    """a * b + c rounded once, for b of at most 29 bits: float64 holds the product with either half
    of a."""
    whole, high = np.float64(a), np.float64(np.float32(a))
    return ((high * b + c) + (whole - high) * b).astype(computed)


def taps(source: int, target: int, align_corners: bool, dtype: int) -> Taps:
    """First and second index and their weights, rounded as csrc/common/bilinear.h says."""
    computed = COMPUTED[dtype]
    i = np.arange(target)
    if source == target:
        return i, i, np.ones(target), np.zeros(target)
    if align_corners:
        scale = computed(computed(source - 1) / computed(target - 1)) if target > 1 else computed(0)
        position = fused(scale, i.astype(np.float64), 0, computed)
    else:
        scale = computed(computed(source) / computed(target))
        position = np.maximum(fused(scale, i + 0.5, -0.5, computed), computed(0))
    # The floor is taken in float32 of a float64 position, too.
    first = np.minimum(position.astype(np.float32).astype(np.int64), source - 1)
    second = np.minimum(first + 1, source - 1)
    weight = np.clip((position - first.astype(computed)).astype(computed), 0, 1).astype(computed)
    return first, second, (computed(1) - weight).astype(np.float64), weight.astype(np.float64)


def interpolated(x: Array, rows: Taps, columns: Taps) -> Array:
    def of_row(index: Array) -> Array:
        first, second, first_weight, second_weight = columns
        picked = x[:, :, index]
        return picked[..., first] * first_weight + picked[..., second] * second_weight

    first, second, first_weight, second_weight = rows
    return first_weight[:, None] * of_row(first) + second_weight[:, None] * of_row(second)


def scattered(grad: Array, rows: Taps, columns: Taps, h: int, w: int) -> Array:
    """The derivative. Both taps are added one by one, so that 0 times infinity is NaN where it is
    PyTorch's."""
    along = np.zeros((*grad.shape[:3], w))
    for j, (first, second, a, b) in enumerate(zip(*columns, strict=True)):
        along[..., first] += a * grad[..., j]
        along[..., second] += b * grad[..., j]
    total = np.zeros((*grad.shape[:2], h, w))
    for i, (first, second, a, b) in enumerate(zip(*rows, strict=True)):
        total[:, :, first] += a * along[:, :, i]
        total[:, :, second] += b * along[:, :, i]
    return total


def reach(grad: Array, rows: Taps, columns: Taps, h: int, w: int) -> Array:
    """The magnitudes that each source element's gradient is a sum of, with weights of 1."""

    def whole(taps: Taps) -> Taps:
        return taps[0], taps[1], np.ones_like(taps[2]), np.ones_like(taps[3])

    return np.nan_to_num(scattered(np.abs(grad), whole(rows), whole(columns), h, w), posinf=0)


@case
def upsample(trial: Trial, shape: Features = None) -> None:
    dtype, last = int(trial.random.integers(0, 4)), int(trial.random.integers(0, 2))
    n, c, h, w, height, width = shape[:6] if shape else _shape(trial)
    align, add = int(trial.random.integers(0, 2)), trial.chance(0.5)
    kind = trial.pick(["plain", "plain", "special"])
    sizes = {"n": n, "c": c, "h": h, "w": w, "height": height, "width": width}
    sizes |= {"align_corners": align, "channels_last": last}
    x = trial.values((n, c, h, w), dtype, kind)
    skip, grad = (trial.values((n, c, height, width), dtype, kind) for _ in range(2))
    offset = trial.pick([0, 0, 0, BYTES[dtype]])
    label = described(dtype, sizes, add=add, kind=kind, offset=offset)
    rows, columns = taps(h, height, bool(align), dtype), taps(w, width, bool(align), dtype)

    got = trial.call(
        "upsample",
        label,
        dtype,
        sizes,
        {"x": _in_memory(x, last), "skip": _in_memory(skip, last) if add else None},
        offsets=dict.fromkeys(("x", "skip", "out"), offset),
    )
    expected = interpolated(x, rows, columns) + (skip if add else 0)
    error = COMPUTING[dtype] * 16 * (finite(expected) + 8)
    trial.compare("upsample", label, "out", _from_memory(got["out"], last), expected, dtype, error)

    got = trial.call(
        "upsample_backward",
        label,
        dtype,
        sizes,
        {"grad": _in_memory(grad, last)},
        offsets=dict.fromkeys(("grad", "grad_x"), offset),
    )
    expected = scattered(grad, rows, columns, h, w)
    grad_x = _from_memory(got["grad_x"], last)
    error = COMPUTING[dtype] * 32 * (reach(grad, rows, columns, h, w) + 8)
    trial.compare("upsample_backward", label, "grad_x", grad_x, expected, dtype, error)


def _shape(trial: Trial) -> tuple[int, ...]:
    while True:
        n, c = trial.pick([1, 2, 3, 5]), trial.pick(CHANNELS)
        h, w = trial.pick(SOURCES), trial.pick(SOURCES)
        height, width = trial.pick(TARGETS), trial.pick(TARGETS)
        if trial.chance(0.3):
            height, width = 2 * h, 2 * w
        if trial.chance(0.1):
            height = h
        if n * c * max(h * w, height * width) <= MOST:
            return n, c, h, w, height, width


def _in_memory(values: Array, last: int) -> Array:
    return np.ascontiguousarray(values.transpose(0, 2, 3, 1) if last else values)


def _from_memory(values: Array, last: int) -> Array:
    return values.transpose(0, 3, 1, 2) if last else values
