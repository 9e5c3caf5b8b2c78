"""Inputs that the tests of batch normalisation share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .cbam_cases import features

#: Functions of `ran_kernels` and of its reference, and how many images each takes.
IMAGES = {
    "batch_norm": 1,
    "batch_norm_relu": 1,
    "add_batch_norm_relu": 2,
    "batch_norm_add_relu": 2,
}
SMALL = (2, 3, 5, 7)


def images(
    name: str,
    shape: tuple[int, ...] = SMALL,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    layout: str = "contiguous",
) -> list[Tensor]:
    return [features(shape, dtype, device, layout, seed=seed) for seed in range(IMAGES[name])]


def affine(x: Tensor) -> list[Tensor]:
    """A weight and a bias; about half of the normalised values stay above zero."""
    channels = (1, x.shape[1], 1, 1)
    return [features(channels, seed=seed).flatten().to(x) for seed in (2, 3)]


def running(x: Tensor) -> list[Tensor]:
    channels = x.shape[1]
    return [torch.linspace(a, 2, channels).to(x) for a in (-1, 0.5)]


def called(module: Any, name: str, **options: Any) -> Callable[..., Any]:
    """A function of `module` as one of the images, the weight and the bias, with statistics of its
    own in every call."""

    def call(*tensors: Tensor | None) -> Any:
        count = IMAGES[name]
        x = tensors[0]
        assert x is not None
        return getattr(module, name)(*tensors[:count], *running(x), *tensors[count:], **options)

    return call
