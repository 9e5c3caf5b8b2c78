"""What stands between two residual units of pre-activation: addition, normalisation, ReLU.

He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016. For inference, where batch
normalisation is a scale and a shift per channel; the operators have no derivative.
"""

import torch
from torch import Tensor

from . import backends, reference
from .checks import promote, require_device, require_same_image, require_shape, require_tensor
from .layouts import dense_layout
from .library import define, refuse_gradients


def add_affine_relu(a: Tensor, b: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """``s = a + b`` and ``relu(s * scale[:, None, None] + shift[:, None, None])`` in one pass.

    Two reads and two writes of a tensor of a's size. The second result is computed from the sum
    before that is rounded to its dtype.

    Args:
        a: (N, C, H, W).
        b: (N, C, H, W).
        scale: (C,), computed with in float32, or in float64 where a or b is of that dtype.
        shift: (C,), likewise.

    Returns:
        Both (N, C, H, W), in the dtype that PyTorch's promotion gives for a and b (scale and shift
        do not count, as in batch normalisation), with a's strides where a is contiguous or
        channels_last.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: shapes or devices do not fit.
        RuntimeError: an argument requires gradients, which the reference backend alone gives.
        BackendError: a backend was asked for that cannot run this.
    """
    require_same_image("b", b, "a", a)
    _require_affine("a", a, scale, shift)
    a, b = promote(a, b)
    backend = backends.choose("add_affine_relu", a)
    if backend == "reference":
        return reference.add_affine_relu(a, b, scale, shift)
    refuse_gradients("add_affine_relu", backend, a, b, scale, shift)
    return ADD_AFFINE_RELU[backend](a, b, *_computed(a, scale, shift))


def affine_relu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``relu(x * scale[:, None, None] + shift[:, None, None])`` in one pass.

    `add_affine_relu` without the addition: batch normalisation and ReLU where no convolution
    stands before them that could take them.

    Args:
        x: (N, C, H, W).
        scale: (C,), computed with in float32, or in float64 where x is of that dtype.
        shift: (C,), likewise.

    Returns:
        (N, C, H, W) in x's dtype, with x's strides where x is contiguous or channels_last.

    Raises:
        TypeError, ValueError, RuntimeError, BackendError: as `add_affine_relu`.
    """
    require_tensor("x", x)
    _require_affine("x", x, scale, shift)
    backend = backends.choose("add_affine_relu", x)
    if backend == "reference":
        return reference.affine_relu(x, scale, shift)
    refuse_gradients("affine_relu", backend, x, scale, shift)
    return ADD_AFFINE_RELU[backend](x, None, *_computed(x, scale, shift))[1]


def _require_affine(name: str, x: Tensor, scale: Tensor, shift: Tensor) -> None:
    for argument, value in (("scale", scale), ("shift", shift)):
        require_tensor(argument, value, dims=1)
        require_shape(argument, value, (x.shape[1],), f"(C,) of {name}")
        require_device(argument, value, name, x)


def _computed(x: Tensor, *affine: Tensor) -> tuple[Tensor, ...]:
    """Scale and shift in the dtype that x is computed in."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return tuple(t.to(dtype) for t in affine)


def _fake(a: Tensor, b: Tensor | None, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(dense_layout(a))
    return a.new_empty((0,)) if b is None else torch.empty_like(out), out


#: (sum, out); without `b` the sum is no tensor of anything, and has no elements.
ADD_AFFINE_RELU = define(
    "add_affine_relu",
    "(Tensor a, Tensor? b, Tensor scale, Tensor shift) -> (Tensor sum, Tensor out)",
    fake=_fake,
    inference=True,
)
