"""Random cases of channel_pool and spatial_pool."""

import numpy as np

from . import shapes
from .formats import BYTES, COMPUTING, Array
from .trial import Trial, case, described, finite, sigmoid

Features = tuple[int, ...] | None


def features(trial: Trial, shape: Features) -> tuple[int, dict[str, int]]:
    """A dtype and the sizes of a launcher on features, of a shape (n, c, hw[, dtype, last])."""
    dtype, last = int(trial.random.integers(0, 4)), int(trial.random.integers(0, 2))
    if shape is None:
        shape = shapes.features(trial)
    if len(shape) == 5:
        dtype, last = shape[3:]
    return dtype, {"n": shape[0], "c": shape[1], "hw": shape[2], "channels_last": last}


def misaligned(trial: Trial, dtype: int, sizes: dict[str, int], share: float = 0.2) -> int:
    """Bytes by which the features miss their alignment, mostly 0."""
    large = sizes["n"] * sizes["c"] * sizes["hw"] >= 200_000
    return BYTES[dtype] if not large and trial.chance(share) else 0


def in_memory(values: Array, sizes: dict[str, int]) -> Array:
    """(N, C, HW) as it lies in memory."""
    return np.ascontiguousarray(values.transpose(0, 2, 1) if sizes["channels_last"] else values)


def from_memory(values: Array, sizes: dict[str, int]) -> Array:
    return values.transpose(0, 2, 1) if sizes["channels_last"] else values


def first_maximum(values: Array, axis: int) -> Array:
    """The first index of the maximum, where a NaN is greater than all numbers."""
    nan = np.isnan(values)
    among_numbers = np.where(nan, -np.inf, values).argmax(axis)
    return np.where(nan.any(axis), nan.argmax(axis), among_numbers)


@case
def channel_pool(trial: Trial, shape: Features = None) -> None:
    dtype, sizes = features(trial, shape)
    n, c, hw = sizes["n"], sizes["c"], sizes["hw"]
    kind = trial.pick(["plain", "ties", "special", "infinite", "zero"])
    x = trial.values((n, c, hw), dtype, kind)
    if trial.chance(0.2):
        x = np.maximum(x, 0)
    offset = misaligned(trial, dtype, sizes)
    label = described(dtype, sizes, kind=kind, offset=offset)
    got = trial.call(
        "channel_pool", label, dtype, sizes, {"x": in_memory(x, sizes)}, offsets={"x": offset}
    )
    error = COMPUTING[dtype] * (8 + np.sqrt(hw)) * finite(x).mean(2)
    trial.compare("channel_pool", label, "mean", got["mean"], x.mean(2), dtype, error)
    index = first_maximum(x, 2)
    _same_index(trial, "channel_pool", label, got["index"] != index, got["index"], index)
    maximum = np.take_along_axis(x, index[:, :, None], 2)[:, :, 0]
    trial.compare("channel_pool", label, "max", got["max"], maximum, dtype, 0)


@case
def spatial_pool(trial: Trial, shape: Features = None) -> None:
    dtype, sizes = features(trial, shape)
    n, c, hw = sizes["n"], sizes["c"], sizes["hw"]
    kind = trial.pick(["plain", "ties", "special", "infinite", "zero"])
    x = trial.values((n, c, hw), dtype, kind)
    logits = None
    if trial.chance(0.7):
        of_logits = trial.pick(["plain", "large", "plain", "zero", "special"])
        logits = trial.values((n, c), dtype, of_logits, 2)
    offsets = {"x": misaligned(trial, dtype, sizes)}
    offsets["channel_logits"] = misaligned(trial, dtype, sizes, 0.25)
    label = described(dtype, sizes, kind=kind, logits=logits is not None, offsets=offsets)
    got = trial.call(
        "spatial_pool",
        label,
        dtype,
        sizes,
        {"x": in_memory(x, sizes), "channel_logits": logits},
        offsets=offsets,
    )
    gated = x if logits is None else _gated_as_computed(x, logits, dtype)
    magnitude = finite(x if logits is None else x * sigmoid(logits)[:, :, None])
    error = COMPUTING[dtype] * (60 + np.sqrt(c)) * magnitude.mean(1) + 1e-36
    mean, maximum = got["maps"][:, 1], got["maps"][:, 0]
    trial.compare("spatial_pool", label, "mean", mean, gated.mean(1), dtype, error)

    index = first_maximum(gated, 1)
    chosen = np.clip(got["index"], 0, c - 1)
    at_chosen, at_index = (np.take_along_axis(gated, i[:, None], 1)[:, 0] for i in (chosen, index))
    # numpy's exp2 may differ from C's in the last bit, so that a near tie is no error.
    near = np.abs(at_chosen - at_index) <= 4 * COMPUTING[dtype] * np.abs(at_index)
    near &= logits is not None and kind not in ("ties", "zero")
    wrong = ((got["index"] != index) & ~near) | (got["index"] != chosen)
    _same_index(trial, "spatial_pool", label, wrong, got["index"], index)
    error = 4 * COMPUTING[dtype] * finite(at_index)
    trial.compare("spatial_pool", label, "max", maximum, at_index, dtype, error)


def _gated_as_computed(x: Array, logits: Array, dtype: int) -> Array:
    """x * sigmoid(logits) in the kernel's own arithmetic: ties depend on every bit of it."""
    if dtype == 0:
        return x * sigmoid(logits)[:, :, None]
    minus = -logits.astype(np.float32) * np.float32(1.44269504088896341)
    divisor = np.float32(1) + np.exp2(minus.astype(np.float64)).astype(np.float32)
    gate = (np.float32(1) / divisor).astype(np.float32)
    gate = np.where((divisor > np.float32(2.0**126)) & np.isfinite(divisor), np.float32(0), gate)
    return (x.astype(np.float32) * gate[:, :, None]).astype(np.float64)


def _same_index(
    trial: Trial, name: str, label: str, wrong: Array, got: Array, expected: Array
) -> None:
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0])
        place = [int(i) for i in at]
        trial.fail(name, f"{label}: index{place} is {got[at]}, expected {expected[at]}")
