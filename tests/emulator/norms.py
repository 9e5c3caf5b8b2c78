"""Random cases of batch normalisation's four passes."""

import numpy as np

from .formats import (
    BFLOAT16,
    BYTES,
    COMPUTED,
    COMPUTING,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    Array,
    decode,
    encode,
)
from .pools import Features, features, from_memory, in_memory, misaligned
from .trial import Trial, case, described, finite

EPS = 1e-5  # as launchers.cpp has it
#: The greatest number that is 0 once it is rounded to the dtype.
VANISHES = {FLOAT64: 0.0, FLOAT32: 0.0, FLOAT16: 2.0**-25, BFLOAT16: 2.0**-134}


class Norm:
    """What channels are normalised with, in the kernels' own arithmetic: signs depend on it."""

    def __init__(self, trial: Trial, dtype: int, channels: int) -> None:
        self.wide = COMPUTED[dtype]
        normal = trial.random.standard_normal
        self.mean = normal(channels).astype(self.wide)
        self.variance = np.square(normal(channels)).astype(self.wide)
        self.weight = normal(channels).astype(self.wide) if trial.chance(0.8) else None
        self.bias = normal(channels).astype(self.wide) if trial.chance(0.8) else None
        one = self.wide(1)
        self.invstd = (one / np.sqrt(self.variance + self.wide(EPS))).astype(self.wide)
        self.scale = self.invstd if self.weight is None else self.invstd * self.weight

    @classmethod
    def of(cls, trial: Trial, dtype: int, x: Array, kind: str) -> "Norm":
        """One for x. Of the kind "vanishing", each channel's first element is its mean and the bias
        its result: the greatest that rounds to zero, or one beside it."""
        norm = cls(trial, dtype, x.shape[1])
        if kind == "vanishing":
            norm.mean = x[0, :, 0].astype(norm.wide)
            most = norm.wide(VANISHES[dtype])
            beside = [np.nextafter(most, norm.wide(to)) for to in (-1, 1)]
            norm.bias = trial.random.choice(np.array([most, -most, *beside]), x.shape[1])
        return norm

    def inputs(self) -> dict[str, Array | None]:
        given = {"weight": self.weight, "bias": self.bias}
        return {"mean": self.mean, "variance": self.variance, **given}

    def centred(self, x: Array) -> Array:
        """x - mean, of (N, C, HW)."""
        return (x.astype(self.wide) - _maps(self.mean)).astype(np.float64)

    def result(self, x: Array) -> tuple[Array, Array]:
        """What it makes of x, and the magnitude of its terms."""
        product = self.centred(x) * _maps(self.scale)
        if self.bias is None:
            return product, finite(product)
        bias = _maps(self.bias)
        return product + bias, finite(product) + np.abs(bias)


def _maps(channels: Array) -> Array:
    return channels[:, None]


def _computed(dtype: int) -> int:
    return dtype if dtype == FLOAT64 else FLOAT32


def _offsets(
    trial: Trial, dtype: int, sizes: dict[str, int], maps: str, small: str
) -> dict[str, int]:
    offsets = trial.offsets(maps.split(), BYTES[dtype])
    offsets |= trial.offsets(small.split(), np.dtype(COMPUTED[dtype]).itemsize)
    return offsets | {"x": misaligned(trial, dtype, sizes)}


def _added_up(terms: Array, dtype: int) -> tuple[Array, Array]:
    """Sums over N and HW, and how far off they may be."""
    elements = terms.shape[0] * terms.shape[2]
    error = COMPUTING[dtype] * (60 + np.sqrt(elements)) * finite(terms).sum((0, 2))
    return terms.sum((0, 2)), error


@case
def batch_norm_statistics(trial: Trial, shape: Features = None) -> None:
    name = "batch_norm_statistics"
    dtype, sizes = features(trial, shape)
    n, c, hw = sizes["n"], sizes["c"], sizes["hw"]
    kind = trial.pick(["plain", "plain", "ties", "special", "far", "constant"])
    x = trial.values((n, c, hw), dtype, kind)
    if kind == "far":
        x = decode(encode(x + _maps(trial.values((c,), dtype, scale=1e3)), dtype), dtype)
    elif kind == "constant":
        x = x[:1, :, :1] + np.zeros((n, 1, hw))
    addend = trial.values((n, c, hw), dtype) if trial.chance(0.4) else None
    offsets = _offsets(trial, dtype, sizes, "addend sum", "mean variance")
    label = described(dtype, sizes, kind=kind, add=addend is not None, offsets=offsets)
    inputs: dict[str, Array | None] = {"x": in_memory(x, sizes)}
    inputs["addend"] = None if addend is None else in_memory(addend, sizes)
    absent = ("sum",) if addend is None else ()
    got = trial.call(name, label, dtype, sizes, inputs, absent=absent, offsets=offsets)
    if addend is not None:
        wide = COMPUTED[dtype]
        x = decode(encode(x.astype(wide) + addend.astype(wide), dtype), dtype)
        trial.compare(name, label, "sum", from_memory(got["sum"], sizes), x, dtype, 0)
    first = np.where(np.isfinite(x), x, 0)[:1, :, :1]
    mean, variance = first[0, :, 0] + (x - first).mean((0, 2)), (x - first).var((0, 2))
    extent = 2 * finite(x - first).max((0, 2))  # any element may be what deviations are from
    unit = COMPUTING[dtype] * (60 + np.sqrt(n * hw))
    spread = finite(variance)
    # Beside what the deviations are off, the expected sum's own rounding.
    error = unit * extent + COMPUTING[dtype] * finite(mean)
    trial.compare(name, label, "mean", got["mean"], mean, _computed(dtype), error)
    error = unit * (spread + 4 * extent * np.sqrt(spread))
    trial.compare(name, label, "variance", got["variance"], variance, _computed(dtype), error)
    if kind == "constant" and addend is None and (got["variance"] != 0).any():
        trial.fail(name, f"{label}: a constant channel has a variance")


@case
def batch_norm_apply(trial: Trial, shape: Features = None) -> None:
    name = "batch_norm_apply"
    dtype, sizes = features(trial, shape)
    n, c, hw = sizes["n"], sizes["c"], sizes["hw"]
    kind = trial.pick(["plain", "plain", "special"])
    x, norm = trial.values((n, c, hw), dtype, kind), Norm(trial, dtype, c)
    shortcut = trial.values((n, c, hw), dtype) if trial.chance(0.5) else None
    sizes["relu"] = int(trial.random.integers(0, 2))
    inputs: dict[str, Array | None] = {"x": in_memory(x, sizes), **norm.inputs()}
    inputs["shortcut"] = None if shortcut is None else in_memory(shortcut, sizes)
    offsets = _offsets(trial, dtype, sizes, "shortcut out", "mean variance weight bias")
    label = described(dtype, sizes, kind=kind, add=shortcut is not None, offsets=offsets)
    got = trial.call(name, label, dtype, sizes, inputs, offsets=offsets)
    expected, size = norm.result(x)
    if shortcut is not None:
        expected, size = expected + shortcut, size + finite(shortcut)
    if sizes["relu"]:
        expected = np.where(expected <= 0, 0, expected)
    out = from_memory(got["out"], sizes)
    trial.compare(name, label, "out", out, expected, dtype, 8 * COMPUTING[dtype] * size)


@case
def batch_norm_reduce(trial: Trial, shape: Features = None) -> None:
    name = "batch_norm_reduce"
    dtype, sizes = features(trial, shape)
    n, c, hw = sizes["n"], sizes["c"], sizes["hw"]
    kind = trial.pick(["plain", "plain", "special", "vanishing"])
    grad, x = trial.values((n, c, hw), dtype), trial.values((n, c, hw), dtype, kind)
    norm = Norm.of(trial, dtype, x, kind)
    out = None
    if kind != "vanishing" and trial.chance(0.5):
        out = trial.values((n, c, hw), dtype, trial.pick(["plain", "ties", "special"]))
    sizes["relu"] = int(out is not None or kind == "vanishing" or trial.chance(0.5))
    inputs: dict[str, Array | None] = {
        "grad": in_memory(grad, sizes),
        "x": in_memory(x, sizes),
        **norm.inputs(),
    }
    inputs["out"] = None if out is None else in_memory(out, sizes)
    small = "mean variance weight bias sum_grad sum_grad_xhat"
    offsets = _offsets(trial, dtype, sizes, "grad out masked", small)
    label = described(dtype, sizes, kind=kind, out=out is not None, offsets=offsets)
    absent = ("masked",) if out is None else ()
    got = trial.call(name, label, dtype, sizes, inputs, absent=absent, offsets=offsets)
    g = grad
    if out is not None:
        g = np.where(out <= 0, 0, grad)
        trial.compare(name, label, "masked", from_memory(got["masked"], sizes), g, dtype, 0)
    elif sizes["relu"]:
        g = np.where(norm.result(x)[0] <= VANISHES[dtype], 0, grad)
    for key, terms in (
        ("sum_grad", g),
        ("sum_grad_xhat", g * norm.centred(x) * _maps(norm.invstd)),
    ):
        total, error = _added_up(terms, dtype)
        trial.compare(name, label, key, got[key], total, _computed(dtype), error)


@case
def batch_norm_grad(trial: Trial, shape: Features = None) -> None:
    name = "batch_norm_grad"
    dtype, sizes = features(trial, shape)
    n, c, hw = sizes["n"], sizes["c"], sizes["hw"]
    kind = trial.pick(["plain", "plain", "special", "vanishing"])
    grad, x = trial.values((n, c, hw), dtype), trial.values((n, c, hw), dtype, kind)
    norm = Norm.of(trial, dtype, x, kind)
    addend = trial.values((n, c, hw), dtype) if trial.chance(0.5) else None
    sizes["relu"] = int(kind == "vanishing" or trial.chance(0.5))
    inputs: dict[str, Array | None] = {
        "grad": in_memory(grad, sizes),
        "x": in_memory(x, sizes),
        **norm.inputs(),
    }
    inputs["addend"] = None if addend is None else in_memory(addend, sizes)
    sums = trial.random.standard_normal((2, c)).astype(COMPUTED[dtype]) * np.sqrt(n * hw)
    sums = sums.astype(COMPUTED[dtype])
    sloped = trial.chance(0.7)
    for key, values in zip(("sum_grad", "sum_grad_xhat"), sums, strict=True):
        inputs[key] = values if sloped else None
    small = "mean variance weight bias sum_grad sum_grad_xhat"
    offsets = _offsets(trial, dtype, sizes, "grad addend grad_x", small)
    label = (
        described(dtype, sizes, kind=kind, sloped=sloped, add=addend is not None) + f" {offsets}"
    )
    got = trial.call(name, label, dtype, sizes, inputs, offsets=offsets)
    g = grad
    if sizes["relu"]:
        g = np.where(norm.result(x)[0] <= VANISHES[dtype], 0, grad)
    size = finite(g)
    if sloped:
        first, second = (_maps(s.astype(np.float64) / (n * hw)) for s in sums)
        slope = norm.centred(x) * _maps(norm.invstd) * second
        g, size = g - (first + slope), size + np.abs(first) + finite(slope)
    expected, size = g * _maps(norm.scale), size * np.abs(_maps(norm.scale))
    if addend is not None:
        expected, size = expected + addend, size + finite(addend)
    grad_x = from_memory(got["grad_x"], sizes)
    trial.compare(name, label, "grad_x", grad_x, expected, dtype, 16 * COMPUTING[dtype] * size)
