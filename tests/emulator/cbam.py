"""Random cases of cbam_gate and of the three passes of CBAM's backward."""

import numpy as np

from .formats import BYTES, COMPUTING, Array
from .pools import Features, features, from_memory, in_memory, misaligned
from .trial import Trial, case, described, finite, sigmoid


def _perhaps(trial: Trial, share: float, values: Array) -> Array | None:
    return values if trial.chance(share) else None


def _per_channel(logits: Array | None) -> Array | float:
    return 1.0 if logits is None else sigmoid(logits)[:, :, None]


def _per_position(logits: Array | None) -> Array | float:
    return 1.0 if logits is None else sigmoid(logits)[:, None, :]


def _stored(values: Array | None, sizes: dict[str, int]) -> Array | None:
    return None if values is None else in_memory(values, sizes)


def _given(inputs: dict[str, Array | None]) -> list[str]:
    return [name for name, values in inputs.items() if values is not None]


@case
def cbam_gate(trial: Trial, shape: Features = None) -> None:
    dtype, sizes = features(trial, shape)
    n, c, hw = sizes["n"], sizes["c"], sizes["hw"]
    kind = trial.pick(["plain", "plain", "special", "zero"])
    x = trial.values((n, c, hw), dtype, kind)
    of_channel = "special" if trial.chance(0.1) else "plain"
    channel = _perhaps(trial, 0.7, trial.values((n, c), dtype, of_channel, 2))
    spatial = _perhaps(trial, 0.7, trial.values((n, hw), dtype, "plain", 2))
    shortcut = _perhaps(trial, 0.5, trial.values((n, c, hw), dtype, kind))
    sizes["relu"] = int(trial.random.integers(0, 2))
    inputs = {"x": in_memory(x, sizes), "channel_logits": channel, "spatial_logits": spatial}
    inputs["shortcut"] = _stored(shortcut, sizes)
    offsets = trial.offsets(
        ("channel_logits", "spatial_logits", "shortcut", "out"), BYTES[dtype]
    ) | {"x": misaligned(trial, dtype, sizes)}
    label = described(dtype, sizes, kind=kind, given=_given(inputs), offsets=offsets)
    got = trial.call("cbam_gate", label, dtype, sizes, inputs, offsets=offsets)
    expected = x * _per_channel(channel) * _per_position(spatial)
    size = finite(expected)
    if shortcut is not None:
        expected, size = expected + shortcut, size + finite(shortcut)
    if sizes["relu"]:
        expected = np.where(expected <= 0, 0, expected)
    out = from_memory(got["out"], sizes)
    trial.compare("cbam_gate", label, "out", out, expected, dtype, 40 * COMPUTING[dtype] * size)


@case
def cbam_grad_spatial(trial: Trial, shape: Features = None) -> None:
    name = "cbam_grad_spatial"
    dtype, sizes = features(trial, shape)
    n, c, hw = sizes["n"], sizes["c"], sizes["hw"]
    kind = trial.pick(["plain", "plain", "special"])
    grad, x = trial.values((n, c, hw), dtype), trial.values((n, c, hw), dtype, kind)
    channel = _perhaps(trial, 0.8, trial.values((n, c), dtype, "plain", 2))
    spatial = trial.values((n, hw), dtype, "plain", 2)
    of_out = trial.pick(["plain", "ties", "special"])
    out = _perhaps(trial, 0.6, trial.values((n, c, hw), dtype, of_out))
    inputs = {"grad": in_memory(grad, sizes), "x": in_memory(x, sizes), "channel_logits": channel}
    inputs |= {"spatial_logits": spatial, "out": _stored(out, sizes)}
    names = ("channel_logits", "spatial_logits", "grad", "out", "masked", "grad_spatial")
    offsets = trial.offsets(names, BYTES[dtype]) | {"x": misaligned(trial, dtype, sizes)}
    label = described(dtype, sizes, kind=kind, given=_given(inputs), offsets=offsets)
    absent = ("masked",) if out is None else ()
    got = trial.call(name, label, dtype, sizes, inputs, absent=absent, offsets=offsets)
    masked = grad
    if out is not None:
        masked = np.where(out <= 0, 0, grad)
        written = from_memory(got["masked"], sizes)
        trial.compare(name, label, "masked", written, masked, dtype, 0)
    gate = sigmoid(spatial)
    products = masked * (x * _per_channel(channel))
    expected = products.sum(1) * (gate * (1 - gate))
    error = COMPUTING[dtype] * (60 + np.sqrt(c)) * finite(products).sum(1)
    trial.compare(name, label, "grad_spatial", got["grad_spatial"], expected, dtype, error)


def _incoming(
    trial: Trial, dtype: int, sizes: dict[str, int], kind: str = "plain"
) -> tuple[dict[str, Array | None], Array, Array]:
    """The operands of CbamIncoming (csrc/cbam.h), the gradient G they make, and its magnitude."""
    n, c, hw = sizes["n"], sizes["c"], sizes["hw"]
    grad = _perhaps(trial, 0.85, trial.values((n, c, hw), dtype, kind))
    spatial = _perhaps(trial, 0.7, trial.values((n, hw), dtype, "plain", 2))
    if grad is None:
        spatial = None
    maps = _perhaps(trial, 0.75, trial.values((n, 2, hw), dtype))
    index = None
    total = np.zeros((n, c, hw))
    if grad is not None:
        total = total + grad * _per_position(spatial)
    size = finite(total)
    if maps is not None:
        index = trial.random.integers(0, c, (n, hw)).astype(np.int32)
        chosen = np.arange(c)[None, :, None] == index[:, None, :]
        of_maximum = np.where(chosen, maps[:, 0][:, None, :], 0)
        of_mean = maps[:, 1][:, None, :] / c
        total = total + of_mean + of_maximum
        size = size + np.abs(of_mean) + np.abs(of_maximum)
    stored = {"grad": _stored(grad, sizes), "spatial_logits": spatial, "grad_maps": maps}
    return {**stored, "spatial_index": index}, total, size


@case
def cbam_grad_channel(trial: Trial, shape: Features = None) -> None:
    name = "cbam_grad_channel"
    dtype, sizes = features(trial, shape)
    n, c, hw = sizes["n"], sizes["c"], sizes["hw"]
    kind = trial.pick(["plain", "plain", "special"])
    inputs, incoming, size = _incoming(trial, dtype, sizes)
    x, channel = trial.values((n, c, hw), dtype, kind), trial.values((n, c), dtype, "plain", 2)
    inputs |= {"x": in_memory(x, sizes), "channel_logits": channel}
    names = ("channel_logits", "spatial_logits", "grad", "grad_maps", "grad_channel")
    offsets = trial.offsets(names, BYTES[dtype]) | trial.offsets(("spatial_index",), 4)
    offsets["x"] = misaligned(trial, dtype, sizes)
    label = described(dtype, sizes, kind=kind, given=_given(inputs), offsets=offsets)
    got = trial.call(name, label, dtype, sizes, inputs, offsets=offsets)
    gate = sigmoid(channel)
    expected = (incoming * x).sum(2) * (gate * (1 - gate))
    error = COMPUTING[dtype] * (60 + np.sqrt(hw)) * (size * finite(x)).sum(2)
    trial.compare(name, label, "grad_channel", got["grad_channel"], expected, dtype, error)


@case
def cbam_grad_x(trial: Trial, shape: Features = None) -> None:
    name = "cbam_grad_x"
    dtype, sizes = features(trial, shape)
    n, c, hw = sizes["n"], sizes["c"], sizes["hw"]
    inputs, incoming, size = _incoming(
        trial, dtype, sizes, trial.pick(["plain", "plain", "special"])
    )
    channel = _perhaps(trial, 0.75, trial.values((n, c), dtype, "plain", 2))
    inputs["channel_logits"] = channel
    expected, size = incoming * _per_channel(channel), size
    if trial.chance(0.75):
        mean, maximum = trial.values((n, c), dtype), trial.values((n, c), dtype)
        index = trial.random.integers(0, hw, (n, c)).astype(np.int32)
        inputs |= {"grad_mean": mean, "grad_max": maximum, "channel_index": index}
        chosen = np.arange(hw)[None, None, :] == index[:, :, None]
        of_maximum = np.where(chosen, maximum[:, :, None], 0)
        of_mean = mean[:, :, None] / hw
        expected = expected + of_mean + of_maximum
        size = size + np.abs(of_mean) + np.abs(of_maximum)
    names = ("channel_logits", "spatial_logits", "grad", "grad_maps", "grad_mean", "grad_max")
    offsets = trial.offsets((*names, "grad_x"), BYTES[dtype])
    offsets |= trial.offsets(("spatial_index", "channel_index"), 4)
    label = described(dtype, sizes, given=_given(inputs), offsets=offsets)
    got = trial.call(name, label, dtype, sizes, inputs, offsets=offsets)
    grad_x = from_memory(got["grad_x"], sizes)
    trial.compare(name, label, "grad_x", grad_x, expected, dtype, 60 * COMPUTING[dtype] * size)
