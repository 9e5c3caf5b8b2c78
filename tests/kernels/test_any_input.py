"""Every operator on shapes, layouts and dtypes that hypothesis thinks of."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("hypothesis")  # `make gpu` runs where nothing can be installed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ran_kernels
from ran_kernels import reference

from .cbam_cases import channel_logits, features, spatial_logits
from .harness import (
    DTYPES,
    EMULATED,
    LAYOUTS,
    Place,
    check_against_reference,
    check_outputs,
)
from .norm_cases import IMAGES, affine, called

NATIVE = [
    pytest.param(Place("native", "cpu"), id="native-cpu"),
    # A minute of the CPU for each operator.
    pytest.param(*EMULATED.values, id=EMULATED.id, marks=[*EMULATED.marks, pytest.mark.emulate]),
    pytest.param(Place("native", "cuda"), id="native-cuda", marks=pytest.mark.gpu),
    pytest.param(Place("triton", "cuda"), id="triton-cuda", marks=pytest.mark.gpu),
]

any_input = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    # The fixtures only set and reset modes, which no example changes.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 40), st.integers(1, 40))
layouts = st.sampled_from(sorted(LAYOUTS))
dtypes = st.sampled_from(DTYPES)


@pytest.mark.parametrize("place", NATIVE)
@any_input
@given(
    shape=shapes,
    of_logits=layouts,
    of_trunk=layouts,
    dtype=dtypes,
    residual=st.booleans(),
    activation=st.sampled_from(("mixed", "channel", "spatial")),
)
def test_attention_gate(
    place: Place,
    shape: tuple[int, ...],
    of_logits: str,
    of_trunk: str,
    dtype: torch.dtype,
    residual: bool,
    activation: str,
) -> None:
    logits = features(shape, dtype, place.device, of_logits)
    trunk = features(shape, dtype, place.device, of_trunk, seed=1)
    if activation == "spatial" and shape[2] * shape[3] < 8:
        activation = "mixed"  # the deviation of a few values cancels: no dtype is exact there
    check_against_reference(
        place,
        ran_kernels.attention_gate,
        reference.attention_gate,
        (logits, trunk),
        residual=residual,
        activation=activation,
    )


@pytest.mark.parametrize("place", NATIVE)
@any_input
@given(
    shape=shapes,
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    of_x=layouts,
    of_skip=layouts,
    dtype=dtypes,
    align_corners=st.booleans(),
)
def test_upsample_add(
    place: Place,
    shape: tuple[int, ...],
    size: tuple[int, int],
    of_x: str,
    of_skip: str,
    dtype: torch.dtype,
    align_corners: bool,
) -> None:
    x = features(shape, dtype, place.device, of_x)
    skip = features((*shape[:2], *size), dtype, place.device, of_skip)
    check_against_reference(
        place,
        ran_kernels.upsample_add,
        reference.upsample_add,
        (x, skip),
        align_corners=align_corners,
    )


@pytest.mark.parametrize("place", NATIVE)
@any_input
@given(shape=shapes, layout=layouts, dtype=dtypes)
def test_channel_pool(
    place: Place, shape: tuple[int, ...], layout: str, dtype: torch.dtype
) -> None:
    x = features(shape, dtype, place.device, layout)
    check_against_reference(place, ran_kernels.channel_pool, reference.channel_pool, (x,))


@pytest.mark.parametrize("place", NATIVE)
@any_input
@given(shape=shapes, layout=layouts, dtype=dtypes, gated=st.booleans())
def test_spatial_pool(
    place: Place, shape: tuple[int, ...], layout: str, dtype: torch.dtype, gated: bool
) -> None:
    x = features(shape, dtype, place.device, layout)
    inputs = (x, channel_logits(x) if gated else None)
    check_against_reference(place, ran_kernels.spatial_pool, reference.spatial_pool, inputs)


def _gate(op: Callable[..., Tensor], relu: bool) -> Callable[..., Any]:
    """cbam_gate with all tensors positional."""
    return lambda x, channel, spatial, shortcut: op(
        x, channel, spatial, shortcut=shortcut, relu=relu
    )


@pytest.mark.parametrize("place", NATIVE)
@any_input
@given(
    shape=shapes,
    of_x=layouts,
    of_shortcut=st.none() | layouts,
    dtype=dtypes,
    gated=st.tuples(st.booleans(), st.booleans()),
    relu=st.booleans(),
)
def test_cbam_gate(
    place: Place,
    shape: tuple[int, ...],
    of_x: str,
    of_shortcut: str | None,
    dtype: torch.dtype,
    gated: tuple[bool, bool],
    relu: bool,
) -> None:
    x = features(shape, dtype, place.device, of_x)
    shortcut = features(shape, dtype, place.device, of_shortcut, seed=3) if of_shortcut else None
    inputs = (
        x,
        channel_logits(x) if gated[0] else None,
        spatial_logits(x) if gated[1] else None,
        shortcut,
    )
    check_against_reference(
        place, _gate(ran_kernels.cbam_gate, relu), _gate(reference.cbam_gate, relu), inputs
    )


@pytest.mark.parametrize("place", NATIVE)
@any_input
@given(shape=shapes, of_a=layouts, of_b=layouts, dtype=dtypes)
def test_add_affine_relu(
    place: Place, shape: tuple[int, ...], of_a: str, of_b: str, dtype: torch.dtype
) -> None:
    a = features(shape, dtype, place.device, of_a)
    b = features(shape, dtype, place.device, of_b, seed=1)
    scale, shift = (channel_logits(t)[0] for t in (a, b))
    check_outputs(
        place, ran_kernels.add_affine_relu, reference.add_affine_relu, (a, b, scale, shift)
    )
    check_outputs(place, ran_kernels.affine_relu, reference.affine_relu, (a, scale, shift))


@pytest.mark.parametrize("place", NATIVE)
@any_input
@given(
    name=st.sampled_from(sorted(IMAGES)),
    shape=shapes,
    of_first=layouts,
    of_second=layouts,
    dtype=dtypes,
    with_affine=st.tuples(st.booleans(), st.booleans()),
    training=st.booleans(),
)
def test_batch_norm(
    place: Place,
    name: str,
    shape: tuple[int, ...],
    of_first: str,
    of_second: str,
    dtype: torch.dtype,
    with_affine: tuple[bool, bool],
    training: bool,
) -> None:
    if shape[0] * shape[2] * shape[3] < 8:
        training = False  # the deviation of a few values cancels: no dtype is exact there
    how = [of_first, of_second][: IMAGES[name]]
    images = [features(shape, dtype, place.device, way, seed=i) for i, way in enumerate(how)]
    small = [t if given else None for t, given in zip(affine(images[0]), with_affine, strict=True)]
    check_against_reference(
        place,
        called(ran_kernels, name, training=training),
        called(reference, name, training=training),
        [*images, *small],
    )
