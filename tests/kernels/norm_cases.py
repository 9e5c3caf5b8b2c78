"""Inputs that the tests of batch normalisation share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ran_kernels import Convolution

from .cbam_cases import features

#: Functions of `ran_kernels` and of its reference, and how many images each takes.
IMAGES = {
    "batch_norm": 1,
    "batch_norm_relu": 1,
    "add_batch_norm_relu": 2,
    "batch_norm_add_relu": 2,
}
#: Those that convolve as well.
CONVOLVED = {"batch_norm_relu_conv2d": 1, "add_batch_norm_relu_conv2d": 2}
_COUNTS = {**IMAGES, **CONVOLVED}
SMALL = (2, 3, 5, 7)


def images(
    name: str,
    shape: tuple[int, ...] = SMALL,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    layout: str = "contiguous",
) -> list[Tensor]:
    return [features(shape, dtype, device, layout, seed=seed) for seed in range(_COUNTS[name])]


def affine(x: Tensor) -> list[Tensor]:
    """A weight and a bias; about half of the normalised values stay above zero."""
    channels = (1, x.shape[1], 1, 1)
    return [features(channels, seed=seed).flatten().to(x) for seed in (2, 3)]


def running(x: Tensor) -> list[Tensor]:
    channels = x.shape[1]
    return [torch.linspace(a, 2, channels).to(x) for a in (-1, 0.5)]


def convolutions(x: Tensor, forms: Sequence[Sequence[Any]]) -> list[Tensor]:
    """Weights, and biases where there are some, in turn, of convolutions of x.

    Args:
        forms: for each out channels, kernel size and whether there is a bias, and then stride,
            padding, dilation and groups as `ran_kernels.Convolution` has them.
    """
    made = []
    for seed, (out, kernel, has_bias, *rest) in enumerate(forms):
        groups = Convolution(x, None, *rest).groups
        of_each = x.shape[1] // groups
        weight = features((out, of_each, kernel, kernel), seed=seed + 4)
        made.append((weight / (of_each * kernel * kernel) ** 0.5).to(x))
        if has_bias:
            made.append(features((1, out, 1, 1), seed=seed).flatten().to(x))
    return made


def called(
    module: Any,
    name: str,
    *,
    forms: Sequence[Sequence[Any]] = (),
    statistics: list[Tensor] | None = None,
    **options: Any,
) -> Callable[..., Any]:
    """A function of `module` as one of the images, the weight and the bias, and of `convolutions`,
    with `statistics`, or with some of its own in every call."""

    def call(*tensors: Tensor | None) -> Any:
        count = _COUNTS[name]
        x = tensors[0]
        assert x is not None
        operands = iter(tensors[count + 2 :])
        convs = []
        for _, _, has_bias, *rest in forms:
            weight = next(operands)
            assert weight is not None
            convs.append(Convolution(weight, next(operands) if has_bias else None, *rest))
        channels = [*(statistics or running(x)), *tensors[count : count + 2]]
        more = {"convs": convs} if forms else {}
        return getattr(module, name)(*tensors[:count], *channels, **more, **options)

    return call
