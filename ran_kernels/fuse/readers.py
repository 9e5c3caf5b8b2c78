"""How other libraries' CBAM modules are put together, and the same layers as `nn.CBAM`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from ..nn import CBAM
from ..parts import is_pointwise, keeps_size


class UnusualError(Exception):
    """Why a module cannot be replaced."""


class Known(NamedTuple):
    """A module that was understood."""

    fused: CBAM
    """Of the module's own layers, so of its own parameters and buffers."""
    channel: nn.Module
    """The module's half with channel attention, (N, C, H, W) to the same."""
    spatial: nn.Module
    """The module's half with spatial attention, (N, C, H, W) to the same."""


def read(module: nn.Module) -> Known:
    """Takes `module` apart. Raises UnusualError where it is put together otherwise."""
    try:
        return READERS[type(module).__name__](module)
    except (AttributeError, TypeError, ValueError) as error:
        raise UnusualError(f"it is built unlike the known module of this name: {error}") from None


def _known(
    halves: tuple[nn.Module, nn.Module], fc1: Any, fc2: Any, conv: Any, norm: Any, mean_first: bool
) -> Known:
    mlp_conv = type(fc1) is nn.Conv2d
    for layer in (fc1, fc2):
        _require_type(layer, nn.Conv2d if mlp_conv else nn.Linear)
        if mlp_conv and not is_pointwise(layer):
            raise UnusualError("its perceptron has convolutions that are not 1×1")
    _require_type(conv, nn.Conv2d)
    if conv.bias is not None:
        raise UnusualError("its convolution has a bias")
    if not keeps_size(conv):  # what the kernels take for granted, where the reference asks it
        raise UnusualError("its convolution has another stride, padding or dilation")
    channels = fc1.in_channels if mlp_conv else fc1.in_features
    with torch.device("meta"):  # its own layers make room for the given ones at once
        fused = CBAM(channels, reduction=channels, mean_first=mean_first, mlp_conv=mlp_conv)
    fused.fc1, fused.fc2, fused.conv, fused.norm = fc1, fc2, conv, _norm(norm)
    return Known(fused, *halves)


def _norm(layer: Any) -> nn.BatchNorm2d:
    """Batch normalisation, also as timm's BatchNormAct2d without an activation."""
    if type(layer).__name__ != "BatchNormAct2d":
        _require_type(layer, nn.BatchNorm2d)
        return layer
    for part in (layer.act, layer.drop):
        _require_type(part, nn.Identity)
    form = (layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    made = nn.BatchNorm2d(layer.num_features, *form, device="meta")
    # Set as they are: what was set to None since stays None, and what is not saved is not.
    made._parameters, made._buffers = dict(layer._parameters), dict(layer._buffers)
    made._non_persistent_buffers_set = set(layer._non_persistent_buffers_set)
    return made.train(layer.training)


def _require_type(layer: nn.Module, kind: type[nn.Module]) -> None:
    # No subclass: it may compute something else, as a layer with a parametrisation does.
    if type(layer) is not kind:
        raise UnusualError(f"it has {type(layer).__name__} where CBAM has {kind.__name__}")


def _from_timm(module: Any) -> Known:
    """timm's CbamModule: a perceptron of 1×1 convolutions, and the maps as (mean, max)."""
    channel, spatial = module.channel, module.spatial
    _require_type(channel.act, nn.ReLU)
    conv = spatial.conv
    return _known((channel, spatial), channel.fc1, channel.fc2, conv.conv, conv.bn, True)


def _from_official(module: Any) -> Known:
    """CBAM of the authors' attention-module repository."""
    if getattr(module, "no_spatial", False):
        raise UnusualError("it has no spatial attention")
    channel, spatial = module.ChannelGate, module.SpatialGate
    if sorted(channel.pool_types) != ["avg", "max"]:
        raise UnusualError(f"it pools by {', '.join(channel.pool_types)}, not by avg and max")
    if len(channel.mlp) != 4:
        raise UnusualError("its perceptron has not two layers")
    _, fc1, act, fc2 = channel.mlp  # after a Flatten of their own
    _require_type(act, nn.ReLU)
    conv = spatial.spatial
    return _known((channel, spatial), fc1, fc2, conv.conv, conv.bn, False)


def _from_pytorchcv(module: Any) -> Known:
    """pytorchcv's CbamBlock."""
    channel, spatial = module.ch_gate, module.sp_gate
    mlp, conv = channel.mlp, spatial.conv
    _require_type(mlp.activ, nn.ReLU)
    return _known((channel, spatial), mlp.fc1, mlp.fc2, conv.conv, conv.bn, False)


def _refuse_light(module: Any) -> Known:
    raise UnusualError("it is the light variant, which adds the pools before the perceptron")


#: By the names of the classes.
READERS: dict[str, Callable[[Any], Known]] = {
    "CBAM": _from_official,
    "CbamModule": _from_timm,
    "CbamBlock": _from_pytorchcv,
    "LightCbamModule": _refuse_light,
}
