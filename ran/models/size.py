"""How many parameters a plan makes, before it is built: 400 bytes of JSON may ask for any."""

from collections.abc import Sequence

from ..checks import require
from .spec import NetworkSpec
from .units import CARDINALITY

#: Of a network that is built at all: 16 GB in float32, twenty times the largest one named here.
MOST_PARAMETERS = 4_000_000_000


def require_parameters(name: str, parameters: int) -> None:
    """Raise ValueError, which names the argument, where a network would be too large to build."""
    expected = f"a network of at most {MOST_PARAMETERS:,} parameters"
    require(parameters <= MOST_PARAMETERS, name, expected, parameters)


def attention_parameters(spec: NetworkSpec, in_chans: int, num_classes: int) -> int:
    """Learnable parameters of :class:`ran.ResidualAttentionNetwork`."""
    preact = spec.unit == "preact"
    unit = _preact_unit if preact else _resnext_unit
    count = in_chans * spec.stem_kernel**2 * spec.stem_width + 2 * spec.stem_width
    before = spec.stem_width
    for stage, width in enumerate(spec.widths):
        count += unit(before, width, before != width or spec.strides[stage] > 1)
        head = 2 * width**2 + 2 * width + (2 * width if preact else 0)
        count += spec.modules[stage] * (spec.module_units(stage) * unit(width, width, False) + head)
        before = width
    for number in range(spec.tail_units):
        changes = number == 0 and (before != spec.tail_width or spec.tail_stride > 1)
        count += unit(before, spec.tail_width, changes)
        before = spec.tail_width
    count += 2 * before if preact else 0
    return count + (num_classes * (before + 1))


def cbam_parameters(
    block: str,
    layers: Sequence[int],
    channels: Sequence[int],
    cardinality: int,
    base_width: int,
    reduction: int,
    in_chans: int,
    num_classes: int,
) -> int:
    """Learnable parameters of :class:`ran.CbamResNet`."""
    before = 64
    count = in_chans * 7**2 * before + 2 * before
    for stage, (blocks, planes) in enumerate(zip(layers, channels, strict=True)):
        out = planes if block == "basic" else 4 * planes
        width = planes * base_width // 64 * cardinality
        hidden = out // reduction
        cbam = out * hidden + hidden + hidden * out + out + 2 * 7**2 + 2
        for number in range(blocks):
            if block == "basic":
                count += 9 * before * planes + 9 * planes**2 + 4 * planes
            else:
                count += before * width + 9 * width**2 // cardinality + width * out
                count += 4 * width + 2 * out
            if number == 0 and (stage > 0 or before != out):
                count += before * out + 2 * out
            count += cbam
            before = out
    return count + num_classes * (before + 1)


def _preact_unit(into: int, out: int, changes: bool) -> int:
    width = out // 4
    count = 2 * into + into * width + 4 * width + 9 * width**2 + width * out
    return count + (into * out if changes else 0)


def _resnext_unit(into: int, out: int, changes: bool) -> int:
    width = out // 2
    count = into * width + 4 * width + 9 * width**2 // CARDINALITY + width * out + 2 * out
    return count + (into * out + 2 * out if changes else 0)
