"""What each attention module of a network did to one image, ready to be drawn."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ran_kernels.nn import CBAM

from ..errors import UserError
from ..models.attention import AttentionFeatures, AttentionModule
from ..models.cbam_resnet import CbamGates

#: Single channels shown of each module.
CHANNELS = 2
#: How many of the highest scores the second and later channels are chosen from.
CANDIDATES = 32


@dataclass(frozen=True)
class ChannelView:
    """One channel of a module's features.

    Attributes:
        number: of the channel.
        gate: the one value that CBAM's channel attention multiplies it by; None elsewhere.
        before, after: features (h, w) before and after the mask.
        mask: (h, w), what lies between them; None where one mask holds for all channels.
    """

    number: int
    gate: float | None
    before: np.ndarray
    mask: np.ndarray | None
    after: np.ndarray


@dataclass(frozen=True)
class ModuleView:
    """One attention module.

    Attributes:
        name: as in ``attention_masks``.
        width: channels of its features.
        mask: (h, w), the mean over channels of the mask, or CBAM's spatial gate.
        gates: (width,), CBAM's channel gate; None elsewhere.
        channels: some of its channels, the most telling first.
    """

    name: str
    width: int
    mask: np.ndarray
    gates: np.ndarray | None
    channels: tuple[ChannelView, ...]


def has_attention(network: nn.Module) -> bool:
    """Whether ``attention_views`` finds a module in ``network``."""
    return bool(_module_names(network))


@torch.no_grad()
def attention_views(
    network: nn.Module,
    x: Tensor,
    *,
    pattern: str = "*",
    channels: Mapping[str, tuple[int, ...]] | None = None,
) -> list[ModuleView]:
    """What the modules called like ``pattern`` did to the image x (1, C, H, W), normalised.

    Args:
        network: of ``ran.create_model``; it stays as it was.
        pattern: of module names, as a shell matches file names.
        channels: numbers of the channels to show by module name, instead of those chosen here:
            where the mask tells most, for CBAM those with the highest gates.

    Raises:
        UserError: no module is called like that.
    """
    names = [name for name in _module_names(network) if fnmatch(name, pattern)]
    if not names:
        known = ", ".join(_module_names(network)) or "none"
        raise UserError(f"modules: expected a pattern of attention modules ({known}), {pattern!r}")
    chosen = channels or {}
    if hasattr(network, "attention_features"):
        features = network.attention_features(x)  # type: ignore[operator]
        return [_soft_view(name, features[name], chosen.get(name)) for name in names]
    with _cbam_inputs(network) as inputs:
        gates = network.attention_masks(x)  # type: ignore[operator]
    return [
        _cbam_view(
            name,
            inputs[name],
            CbamGates(gates[f"{name}.channel"], gates[f"{name}.spatial"]),
            chosen.get(name),
        )
        for name in names
    ]


def shown_channels(views: list[ModuleView]) -> dict[str, tuple[int, ...]]:
    """The channels that ``views`` show, for ``attention_views`` of another network to show too."""
    return {view.name: tuple(channel.number for channel in view.channels) for view in views}


def telling_channels(mask: Tensor, features: Tensor, count: int = CHANNELS) -> tuple[int, ...]:
    """The channels whose mask (C, h, w) tells most about what it does to ``features`` (C, h, w).

    A mask tells much that differs much from place to place, where there are features to weigh: the
    score is its standard deviation times the mean of the features' magnitude. The first channel has
    the highest score; each further one the highest of those that differ from the ones before, its
    score times one minus its greatest correlation with their masks. So where one channel keeps
    the object, the next may show another that keeps the background.
    """
    score = mask.flatten(1).std(1, correction=0) * features.abs().flatten(1).mean(1)
    order = score.argsort(descending=True, stable=True)[:CANDIDATES]
    maps = mask.flatten(1)[order]
    maps = maps - maps.mean(1, keepdim=True)
    unit = maps / maps.norm(dim=1, keepdim=True).clamp_min(1e-12)
    correlation = unit @ unit.T
    taken: list[int] = []
    while len(taken) < min(count, len(order)):
        worth = score[order].clone()
        if taken:
            worth *= 1 - correlation[:, taken].amax(1)
            worth[taken] = -1
        taken.append(int(worth.argmax()))
    return tuple(order[taken].tolist())


def _module_names(network: nn.Module) -> list[str]:
    if not hasattr(network, "attention_masks"):
        return []
    kinds = (AttentionModule, CBAM)
    return [name for name, module in network.named_modules() if isinstance(module, kinds)]


def _soft_view(
    name: str, features: AttentionFeatures, channels: tuple[int, ...] | None
) -> ModuleView:
    trunk, mask, gated = (value[0].float().cpu() for value in features)
    shown = telling_channels(mask, trunk) if channels is None else channels
    return ModuleView(
        name,
        width=len(mask),
        mask=mask.mean(0).numpy(),
        gates=None,
        channels=tuple(
            ChannelView(number, None, *(part[number].numpy() for part in (trunk, mask, gated)))
            for number in shown
        ),
    )


def _cbam_view(
    name: str, features: Tensor, gates: CbamGates, channels: tuple[int, ...] | None
) -> ModuleView:
    before = features[0].float().cpu()
    channel, spatial = gates.channel[0].float().cpu(), gates.spatial[0].float().cpu()
    after = before * channel * spatial
    weights = channel.flatten()
    shown = channels
    if shown is None:
        shown = tuple(weights.argsort(descending=True, stable=True)[:CHANNELS].tolist())
    return ModuleView(
        name,
        width=len(before),
        mask=spatial[0].numpy(),
        gates=weights.numpy(),
        channels=tuple(
            ChannelView(
                number, weights[number].item(), before[number].numpy(), None, after[number].numpy()
            )
            for number in shown
        ),
    )


@contextmanager
def _cbam_inputs(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The input of each CBAM by its name, once the network has run inside."""
    inputs: dict[str, Tensor] = {}
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, CBAM):

            def keep(_: nn.Module, arguments: tuple[Any, ...], name: str = name) -> None:
                inputs[name] = arguments[0].detach()

            hooks.append(module.register_forward_pre_hook(keep))
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()
