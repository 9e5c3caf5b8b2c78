"""CBAM's three backward passes, as operators with optional terms.

They serve the single operators' derivatives as well as the fused block's. With sc and ss the
sigmoids of channel_logits (N, C) and spatial_logits (N, 1, H, W), 1 where these are absent, and
maps (maximum, mean) over the channels of ``x * sc``:

1. ``cbam_grad_spatial``: grad_spatial = ss (1 - ss) Σ_c g x sc, where g is grad, and with `out`
   what a ReLU that returned `out` lets through. Then g is the second result, for passes 2 and 3
   and for the shortcut; without `out` that is an empty tensor.
2. ``cbam_grad_channel``: grad_channel = sc (1 - sc) Σ_hw G x, with the gradient at ``x * sc``
   G = g ss + grad_maps[1] / C + (channel = spatial_index) grad_maps[0].
3. ``cbam_grad_x``: grad_x = G sc + grad_mean / HW + (position = channel_index) grad_max.

Every term that is None is left out. In pass 3, x gives shape, dtype and layout only.
"""

import torch
from torch import Tensor

from .layouts import dense_layout
from .library import define


def _fake_grad_spatial(
    grad: Tensor,
    x: Tensor,
    channel_logits: Tensor | None,
    spatial_logits: Tensor,
    out: Tensor | None,
) -> tuple[Tensor, Tensor]:
    masked = x.new_empty(0) if out is None else torch.empty_like(dense_layout(x))
    return x.new_empty(spatial_logits.shape), masked


def _fake_grad_channel(
    grad: Tensor | None,
    x: Tensor,
    channel_logits: Tensor,
    spatial_logits: Tensor | None,
    grad_maps: Tensor | None,
    spatial_index: Tensor | None,
) -> Tensor:
    return x.new_empty(channel_logits.shape)


def _fake_grad_x(
    x: Tensor,
    grad: Tensor | None,
    channel_logits: Tensor | None,
    spatial_logits: Tensor | None,
    grad_maps: Tensor | None,
    spatial_index: Tensor | None,
    grad_mean: Tensor | None,
    grad_max: Tensor | None,
    channel_index: Tensor | None,
) -> Tensor:
    return torch.empty_like(dense_layout(x))


GRAD_SPATIAL = define(
    "cbam_grad_spatial",
    "(Tensor grad, Tensor x, Tensor? channel_logits, Tensor spatial_logits, Tensor? out)"
    " -> (Tensor grad_spatial, Tensor masked)",
    fake=_fake_grad_spatial,
    file="cbam_backward",
)
GRAD_CHANNEL = define(
    "cbam_grad_channel",
    "(Tensor? grad, Tensor x, Tensor channel_logits, Tensor? spatial_logits, Tensor? grad_maps,"
    " Tensor? spatial_index) -> Tensor",
    fake=_fake_grad_channel,
    file="cbam_backward",
)
GRAD_X = define(
    "cbam_grad_x",
    "(Tensor x, Tensor? grad, Tensor? channel_logits, Tensor? spatial_logits, Tensor? grad_maps,"
    " Tensor? spatial_index, Tensor? grad_mean, Tensor? grad_max, Tensor? channel_index) -> Tensor",
    fake=_fake_grad_x,
    file="cbam_backward",
)
