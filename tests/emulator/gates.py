"""Random cases of attention_gate and its backward, of the three activations."""

from typing import Any

import numpy as np

from . import shapes
from .formats import BYTES, COMPUTING, Array, decode, encode
from .pools import Features
from .trial import Trial, case, described, finite, sigmoid

MIXED, CHANNEL, SPATIAL = range(3)
#: Group sizes around those where a warp, a block and two walks take turns.
LONG = (1024, 1025, 1032, 2048, 3000, 3001, 5000)
#: Below the smallest normal number a format that is computed in keeps fewer digits.
UNDERFLOW = (2.0**-1000, 2.0**-120, 2.0**-120, 2.0**-120)
#: By what logits are multiplied so that the sum of their squares overflows; float16's cannot.
OVERFLOW = (2.0**520, 2.0**70, 2.0**12, 2.0**70)
#: Statistics of a group in more digits and a wider range than any kernel's.
WIDE = np.longdouble


def groups(activation: int, n: int, c: int, hw: int, last: int) -> dict[str, int]:
    """The sizes of the launcher; see GateShape in csrc/attention_gate.h."""
    if activation == CHANNEL:
        outer, members, inner = (n * hw, c, 1) if last else (n, c, hw)
    elif activation == SPATIAL:
        outer, members, inner = (n, hw, c) if last else (n * c, hw, 1)
    else:
        outer, members, inner = 1, n * c * hw, 1
    return {"activation": activation, "outer": outer, "members": members, "inner": inner}


@case
def attention_gate_mixed(trial: Trial, shape: Features = None) -> None:
    dtype = int(trial.random.integers(0, 4))
    any_size = int(trial.random.integers(1, 20000))
    count = int(trial.pick([1, 2, 3, 7, 8, 9, 255, 256, 257, 2047, 2048, 2049, 5000, any_size]))
    kind = trial.pick(["plain", "large", "special", "ties"])
    sizes = groups(MIXED, 1, count, 1, 0) | {"residual": int(trial.random.integers(0, 2))}
    logits, trunk, grad = (
        trial.values((1, count, 1), dtype, kind, scale) for scale in (2.0, 1.0, 1.0)
    )
    mask = sigmoid(logits)
    error = COMPUTING[dtype] * (8 + 2 * finite(logits))
    tiny = UNDERFLOW[dtype]
    _forward(trial, dtype, sizes, kind, logits, trunk, mask, error, tiny * (1 + finite(trunk)))
    # 1 - M is formed from the rounded M.
    to_logits = grad * trunk * (mask * (1 - mask))
    limit = 2 * error * finite(grad) * finite(trunk)
    limit = limit + tiny * (1 + finite(grad)) * (1 + finite(trunk))
    _backward(trial, dtype, sizes, kind, (grad, logits, trunk), mask, error, to_logits, limit)


@case
def attention_gate_groups(trial: Trial, shape: Features = None) -> None:
    dtype = int(trial.random.integers(0, 4))
    activation = int(trial.random.integers(1, 3))
    last = int(trial.random.integers(0, 2))
    n, c, hw = shapes.features(trial, 60000) if shape is None else shape[:3]
    if shape is None and trial.chance(0.15):
        members, others = int(trial.pick(LONG)), int(trial.random.integers(1, 4))
        n, c, hw = (1, members, others) if activation == CHANNEL else (1, others, members)
    kind = trial.pick(
        [*("plain", "plain", "large", "special", "zero", "ties"), "shifted", "equal", "overflowing"]
    )
    sizes = groups(activation, n, c, hw, last) | {"residual": int(trial.random.integers(0, 2))}
    of_shape = (sizes["outer"], sizes["members"], sizes["inner"])
    logits = _logits(trial, of_shape, dtype, kind)
    trunk = trial.values(of_shape, dtype, "special" if trial.chance(0.2) else "plain")
    grad = trial.values(of_shape, dtype)
    roundings = COMPUTING[dtype] * (32 + 2 * np.sqrt(sizes["members"]))
    standardise = _channel if activation == CHANNEL else _spatial
    standardise(trial, dtype, sizes, kind, (grad, logits, trunk), roundings)


def _logits(trial: Trial, shape: tuple[int, int, int], dtype: int, kind: str) -> Array:
    """Of a kind of `Trial.values`, or groups that lie far from 0 and close together, each of equal
    logits, or some with squares that overflow."""
    logits = trial.values(shape, dtype, kind, 2)
    if kind == "shifted":
        logits = 1000 + logits * 2.0**-11
    elif kind == "equal":
        logits = np.broadcast_to(1000 * logits[:, :1], shape)
    elif kind == "overflowing":
        some = trial.random.random((shape[0], 1, shape[2])) < 0.5
        logits = np.where(some, OVERFLOW[dtype], 1) * logits
    return decode(encode(logits, dtype), dtype)


def _channel(
    trial: Trial,
    dtype: int,
    sizes: dict[str, int],
    kind: str,
    operands: tuple[Array, Array, Array],
    roundings: float,
) -> None:
    grad, logits, trunk = operands
    wide = logits.astype(WIDE)
    norm = np.sqrt((wide * wide).sum(1, keepdims=True)).astype(np.float64)
    scale = 1 / np.maximum(norm, 1e-12)
    z = np.where(np.isinf(norm), logits / norm, logits * scale)  # infinity over infinity
    error = roundings * finite(z)
    _forward(trial, dtype, sizes, kind, logits, trunk, z, error + roundings, 0)
    u = grad * trunk
    second = np.where(norm < 1e-12, 0.0, (u * z).sum(1, keepdims=True))
    to_logits = scale * (u - z * second)
    of_sum = (finite(u) * finite(z)).sum(1, keepdims=True)
    limit = roundings * (finite(u) + 4 * finite(z) * of_sum) + error * of_sum
    limit = finite(scale) * limit + UNDERFLOW[dtype]
    _backward(trial, dtype, sizes, kind, operands, z, error + roundings, to_logits, limit)


def _spatial(
    trial: Trial,
    dtype: int,
    sizes: dict[str, int],
    kind: str,
    operands: tuple[Array, Array, Array],
    roundings: float,
) -> None:
    grad, logits, trunk = operands

    def mean(values: Array) -> Array:
        return values.mean(1, keepdims=True)

    wide = logits.astype(WIDE)
    deviation = wide - mean(wide)
    scale = (1 / np.sqrt(mean(deviation**2) + 1e-5)).astype(np.float64)
    z = (deviation * scale).astype(np.float64)
    mask = sigmoid(z)
    # The mean is that of deviations from the group's first member, and nothing is lost after it.
    error = roundings * (1 + finite(z) + finite(z[:, :1]))
    _forward(trial, dtype, sizes, kind, logits, trunk, mask, error + roundings, 0)
    u = grad * trunk * (mask * (1 - mask))
    to_logits = scale * (u - mean(u) - z * mean(u * z))
    size = finite(grad) * finite(trunk)
    both = roundings + error
    limit = 2 * both * size + 2 * mean(both * size)
    limit = limit + finite(z) * mean(size * (both + error) * (1 + finite(z)))
    limit = limit + error * mean(size * finite(z)) + 2 * roundings * finite(to_logits)
    limit = finite(scale) * limit + UNDERFLOW[dtype]
    _backward(trial, dtype, sizes, kind, operands, mask, error + roundings, to_logits, limit)


def _offset(trial: Trial, dtype: int, buffers: tuple[str, ...]) -> dict[str, int]:
    """All of them miss their alignment, now and then."""
    return dict.fromkeys(buffers, trial.pick([0, 0, 0, BYTES[dtype]]))


def _forward(
    trial: Trial,
    dtype: int,
    sizes: dict[str, int],
    kind: str,
    logits: Array,
    trunk: Array,
    mask: Array,
    error: Any,
    more: Any,
) -> None:
    name = "attention_gate"
    offsets = _offset(trial, dtype, ("logits", "trunk", "out"))
    label = described(dtype, sizes, kind=kind, offset=offsets["out"])
    inputs = {"logits": logits, "trunk": trunk}
    got = trial.call(name, label, dtype, sizes, inputs, offsets=offsets)["out"]
    factor = sizes["residual"] + mask
    expected = factor * trunk
    # A factor that is 0, or nearly so, times infinity: either NaN or infinity.
    unknown = (np.abs(factor) <= error) & ~np.isfinite(trunk) & (sizes["activation"] == CHANNEL)
    expected = np.where(unknown, got, expected)
    limit = error * (1 + sizes["residual"]) * finite(trunk) + more
    trial.compare(name, label, "out", got, expected, dtype, limit)


def _backward(
    trial: Trial,
    dtype: int,
    sizes: dict[str, int],
    kind: str,
    operands: tuple[Array, Array, Array],
    mask: Array,
    error: Any,
    to_logits: Array,
    limit: Any,
) -> None:
    name = "attention_gate_backward"
    grad, logits, trunk = operands
    offsets = _offset(trial, dtype, ("grad", "logits", "trunk", "grad_logits", "grad_trunk"))
    label = described(dtype, sizes, kind=kind, offset=offsets["grad"])
    inputs = {"grad": grad, "logits": logits, "trunk": trunk}
    got = trial.call(name, label, dtype, sizes, inputs, offsets=offsets)
    trial.compare(name, label, "grad_logits", got["grad_logits"], to_logits, dtype, limit)
    expected = grad * (sizes["residual"] + mask)
    of_trunk = error * (1 + sizes["residual"]) * finite(grad)
    of_trunk = of_trunk + UNDERFLOW[dtype] * (1 + finite(grad))
    trial.compare(name, label, "grad_trunk", got["grad_trunk"], expected, dtype, of_trunk)
