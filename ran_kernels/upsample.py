"""Bilinear interpolation, and the sum with the skip connection that follows it in a mask branch."""

from typing import Any

from torch import Tensor

from . import backends, reference
from .checks import promote, require_device, require_shape, require_size, require_tensor
from .layouts import empty_image
from .library import define


def upsample(x: Tensor, size: tuple[int, int], *, align_corners: bool = True) -> Tensor:
    """Bilinear interpolation of `x` to `size`, larger or smaller.

    Equal to ``F.interpolate(x, size, mode="bilinear", align_corners=align_corners)``. The backward
    pass gathers, so it gives the same bits every time on every device, and saves nothing but sizes.

    Args:
        x: (N, C, h, w).
        size: (H, W) of the result.
        align_corners: whether the centres of the outermost elements lie on each other, or their
            outer edges.

    Returns:
        (N, C, H, W) in the dtype of `x`, channels_last where the channels of `x` lie side by side
        in memory, contiguous otherwise.

    Raises:
        TypeError: `x` is no floating-point tensor, or `size` no pair of integers.
        ValueError: `x` has not four dimensions, or an image is empty.
        BackendError: a backend was asked for that cannot run this.
    """
    _require_image("x", x)
    height, width = require_size("size", size)
    backend = backends.choose("upsample", x)
    if backend == "reference":
        return reference.upsample(x, (height, width), align_corners=align_corners)
    return _UPSAMPLE[backend](x, height, width, align_corners)


def upsample_add(x: Tensor, skip: Tensor, *, align_corners: bool = True) -> Tensor:
    """Bilinear interpolation of `x` to the size of `skip`, plus `skip`, in one pass over memory.

    Equal to ``F.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=align_corners) +
    skip``. The backward pass gathers, as `upsample`'s does; the gradient of `skip` is the incoming
    gradient itself, and nothing but sizes is saved.

    Args:
        x: (N, C, h, w).
        skip: (N, C, H, W).
        align_corners: as for `upsample`.

    Returns:
        (N, C, H, W) in the dtype that PyTorch's promotion gives for both, channels_last where the
        channels of `skip` lie side by side in memory, contiguous otherwise.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: batch, channels or devices differ, or an image is empty.
        BackendError: a backend was asked for that cannot run this.
    """
    _require_image("skip", skip)
    _require_image("x", x)
    require_shape("x", x, (*skip.shape[:2], *x.shape[2:]), "with the batch and channels of skip")
    require_device("x", x, "skip", skip)
    x, skip = promote(x, skip)
    backend = backends.choose("upsample_add", x)
    if backend == "reference":
        return reference.upsample_add(x, skip, align_corners=align_corners)
    return _UPSAMPLE_ADD[backend](x, skip, align_corners)


def _require_image(name: str, value: Tensor) -> None:
    require_tensor(name, value)
    if value.shape[2] == 0 or value.shape[3] == 0:
        raise ValueError(
            f"{name}: expected a height and width of at least 1, got shape {tuple(value.shape)}"
        )


def _fake(x: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    return empty_image((x.shape[0], x.shape[1], height, width), x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *_, ctx.align_corners = inputs
    ctx.source = x.shape[2:]


def _backward(backend: str, ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return _BACKWARD[backend](grad, *ctx.source, ctx.align_corners), None, None, None


def _fake_add(x: Tensor, skip: Tensor, align_corners: bool) -> Tensor:
    return empty_image(skip.shape, skip)


def _backward_add(backend: str, ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
    grad_x = None
    if ctx.needs_input_grad[0]:
        grad_x = _BACKWARD[backend](grad, *ctx.source, ctx.align_corners)
    return grad_x, grad, None


_UPSAMPLE = define(
    "upsample",
    "(Tensor x, SymInt height, SymInt width, bool align_corners) -> Tensor",
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
_UPSAMPLE_ADD = define(
    "upsample_add",
    "(Tensor x, Tensor skip, bool align_corners) -> Tensor",
    fake=_fake_add,
    setup_context=_setup_context,
    backward=_backward_add,
    file="upsample",
)
_BACKWARD = define(
    "upsample_backward",
    "(Tensor grad, SymInt h, SymInt w, bool align_corners) -> Tensor",
    fake=_fake,
    file="upsample",
)
