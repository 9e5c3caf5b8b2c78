"""Random cases of add_affine_relu and affine_relu."""

import numpy as np

from .formats import BYTES, COMPUTED, COMPUTING
from .pools import Features, features, from_memory, in_memory, misaligned
from .trial import Trial, case, described, finite


@case
def add_affine_relu(trial: Trial, shape: Features = None) -> None:
    name = "add_affine_relu"
    dtype, sizes = features(trial, shape)
    n, c, hw = sizes["n"], sizes["c"], sizes["hw"]
    kind = trial.pick(["plain", "plain", "special"])
    a = trial.values((n, c, hw), dtype, kind)
    b = trial.values((n, c, hw), dtype) if trial.chance(0.5) else None
    scale, shift = (
        trial.random.standard_normal(c).astype(COMPUTED[dtype]).astype(np.float64) for _ in range(2)
    )
    offsets = trial.offsets(("b", "out", "sum"), BYTES[dtype])
    offsets |= trial.offsets(("scale", "shift"), np.dtype(COMPUTED[dtype]).itemsize)
    offsets["a"] = misaligned(trial, dtype, sizes)
    label = described(dtype, sizes, kind=kind, add=b is not None, offsets=offsets)
    inputs = {"a": in_memory(a, sizes), "b": None if b is None else in_memory(b, sizes)}
    inputs |= {"scale": scale, "shift": shift}
    absent = ("sum",) if b is None else ()
    got = trial.call(name, label, dtype, sizes, inputs, absent=absent, offsets=offsets)
    total, size = a, finite(a)
    if b is not None:
        total, size = a + b, size + finite(b)
        written = from_memory(got["sum"], sizes)
        trial.compare(name, label, "sum", written, total, dtype, COMPUTING[dtype] * size)
    factor, offset = scale[:, None], shift[:, None]
    expected = total * factor + offset
    expected = np.where(expected <= 0, 0, expected)
    error = 4 * COMPUTING[dtype] * (size * np.abs(factor) + np.abs(offset))
    out = from_memory(got["out"], sizes)
    trial.compare(name, label, "out", out, expected, dtype, error)
