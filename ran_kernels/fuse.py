"""Puts the fused CBAM in the place of other libraries' CBAM modules, with their weights."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .backends import backend
from .nn import CBAM


class _UnusualError(Exception):
    """Why a module cannot be replaced."""


@dataclass
class FuseReport:
    """What `fuse` did."""

    replaced: list[str] = field(default_factory=list)
    """Names of the modules that are `ran_kernels.nn.CBAM` now."""
    left: dict[str, str] = field(default_factory=dict)
    """Names of the CBAM modules that stayed as they were, and why."""

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} CBAM modules replaced, {len(self.left)} left"]
        lines += [f"  replaced {name}" for name in self.replaced]
        lines += [f"  left {name or '(the model)'}: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)


def fuse(model: nn.Module) -> FuseReport:
    """Replaces the CBAM modules in `model`, in place, by `ran_kernels.nn.CBAM`.

    Known are timm's CbamModule, the CBAM of the authors' attention-module repository, and
    pytorchcv's CbamBlock, by their classes' names and parts. Before a module is replaced, a copy of
    it and its replacement are run on random weights and input, in evaluation and in training: one
    that computes anything else is left alone. So is one with hooks, which would be lost.

    The replacement has the modes, the learnable flags and the weights of the original, in the same
    memory. Fuse after loading a state_dict, whose names change, and before making an optimizer:
    the 1×1 convolutions of timm's perceptron become linear layers with parameters of their own.
    Among equal maxima the gradient goes to the first, where timm's shares it.

    Args:
        model: any module that contains CBAM modules.

    Returns:
        What was replaced, what was left and why. Its ``str`` has a line for each.

    Raises:
        TypeError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a module, got {type(model).__name__}")
    report = FuseReport()
    outcomes: dict[nn.Module, CBAM | str] = {}  # a module may stand in several places
    for name, module in list(model.named_modules(remove_duplicate=False)):
        read = _READERS.get(type(module).__name__)
        if read is None or isinstance(module, CBAM):
            continue
        if module not in outcomes:
            try:
                outcomes[module] = _fused(module, read)
            except _UnusualError as reason:
                outcomes[module] = str(reason)
        outcome = outcomes[module]
        if isinstance(outcome, str):
            report.left[name] = outcome
        elif not name:
            report.left[name] = "it is the whole model: nothing holds it"
        else:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, outcome)
            report.replaced.append(name)
    return report


def _fused(module: nn.Module, read: Callable[[Any], CBAM]) -> CBAM:
    for name, part in module.named_modules():
        hooks = (
            *(part._forward_pre_hooks, part._forward_hooks),
            *(part._backward_pre_hooks, part._backward_hooks),
        )
        if any(hooks):
            raise _UnusualError(f"{name or 'it'} has hooks")
    try:
        fused = read(module)
    except (AttributeError, TypeError) as error:
        raise _UnusualError(f"it is built unlike the known module of this name: {error}") from None
    _require_same_function(module, read)
    # Not fused.train(): a part may be frozen in evaluation mode while the rest trains.
    fused.training = module.training
    return fused


def _require_same_function(module: nn.Module, read: Callable[[Any], CBAM]) -> None:
    """Runs copies of both with the same random weights, which let every part shape the result."""
    random = torch.Generator().manual_seed(0)
    original = copy.deepcopy(module).double().to_empty(device="cpu")
    for parameter in original.parameters():
        parameter.data.normal_(generator=random)
    for buffer in original.buffers():
        buffer.data.zero_()
    # Neither a statistic of 0 nor one of 1 would show where it is used.
    for norm in original.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
            norm.running_var.fill_(0.5)
            norm.running_mean.fill_(0.25)  # type: ignore[union-attr]
    other = read(copy.deepcopy(original))
    x = torch.randn(2, other.fc1.in_features, 5, 4, dtype=torch.float64, generator=random)
    with torch.no_grad(), backend("reference"):
        for training in (True, False):
            original.train(training)
            other.train(training)
            try:
                expected = original(x.clone())
            except Exception as error:
                raise _UnusualError(f"it does not run: {error}") from None
            if not isinstance(expected, Tensor) or not _close(other(x), expected):
                raise _UnusualError("it computes something else than CBAM")


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-9)


def _cbam(fc1: Any, fc2: Any, conv: Any, norm: Any, *, mean_first: bool) -> CBAM:
    parts = _linear(fc1), _linear(fc2), _conv(conv), _norm(norm)
    channels = parts[0].in_features
    with torch.device("meta"):  # its own layers make room for the given ones at once
        cbam = CBAM(channels, reduction=channels, mean_first=mean_first)
    cbam.fc1, cbam.fc2, cbam.conv, cbam.norm = parts
    return cbam


def _linear(layer: Any) -> nn.Linear:
    """A linear layer, or a 1×1 convolution as one."""
    if type(layer) is nn.Linear:
        return layer
    _require_type(layer, nn.Conv2d)
    if layer.kernel_size != (1, 1) or layer.groups != 1:
        raise _UnusualError("its perceptron has convolutions that are not 1×1")
    made = nn.Linear(layer.in_channels, layer.out_channels, layer.bias is not None, device="meta")
    weight = layer.weight.detach().flatten(1)
    made.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    made.bias = layer.bias
    return made.train(layer.training)


def _conv(layer: Any) -> nn.Conv2d:
    _require_type(layer, nn.Conv2d)
    if layer.bias is not None:
        raise _UnusualError("its convolution has a bias")
    # What the kernels take for granted, where the reference asks the layer.
    same = tuple(size // 2 for size in layer.kernel_size)
    form = layer.stride, layer.padding, layer.dilation, layer.padding_mode
    if form != ((1, 1), same, (1, 1), "zeros"):
        raise _UnusualError("its convolution has another stride, padding or dilation")
    return layer


def _norm(layer: Any) -> nn.BatchNorm2d:
    """Batch normalisation, also as timm's BatchNormAct2d without an activation."""
    if type(layer).__name__ == "BatchNormAct2d":
        for part in (layer.act, layer.drop):
            _require_type(part, nn.Identity)
        made = nn.BatchNorm2d(
            layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
        )
        made.weight, made.bias = layer.weight, layer.bias
        for name, buffer in layer.named_buffers():
            made.register_buffer(name, buffer)
        return made.train(layer.training)
    _require_type(layer, nn.BatchNorm2d)
    return layer


def _require_type(layer: nn.Module, kind: type[nn.Module]) -> None:
    # No subclass: it may compute something else, as a layer with a parametrisation does.
    if type(layer) is not kind:
        raise _UnusualError(f"it has {type(layer).__name__} where CBAM has {kind.__name__}")


def _from_timm(module: Any) -> CBAM:
    """timm's CbamModule: a perceptron of 1×1 convolutions, and the maps as (mean, max)."""
    channel, spatial = module.channel, module.spatial
    _require_type(channel.act, nn.ReLU)
    conv = spatial.conv
    return _cbam(channel.fc1, channel.fc2, conv.conv, conv.bn, mean_first=True)


def _from_official(module: Any) -> CBAM:
    """CBAM of the authors' attention-module repository."""
    if getattr(module, "no_spatial", False):
        raise _UnusualError("it has no spatial attention")
    channel, spatial = module.ChannelGate, module.SpatialGate.spatial
    if sorted(channel.pool_types) != ["avg", "max"]:
        raise _UnusualError(f"it pools by {', '.join(channel.pool_types)}, not by avg and max")
    if len(channel.mlp) != 4:
        raise _UnusualError("its perceptron has not two layers")
    _, fc1, act, fc2 = channel.mlp  # after a Flatten of their own
    _require_type(act, nn.ReLU)
    return _cbam(fc1, fc2, spatial.conv, spatial.bn, mean_first=False)


def _from_pytorchcv(module: Any) -> CBAM:
    """pytorchcv's CbamBlock."""
    mlp, spatial = module.ch_gate.mlp, module.sp_gate.conv
    _require_type(mlp.activ, nn.ReLU)
    return _cbam(mlp.fc1, mlp.fc2, spatial.conv, spatial.bn, mean_first=False)


def _refuse_light(module: Any) -> CBAM:
    raise _UnusualError("it is the light variant, which adds the pools before the perceptron")


_READERS: dict[str, Callable[[Any], CBAM]] = {
    "CBAM": _from_official,
    "CbamModule": _from_timm,
    "CbamBlock": _from_pytorchcv,
    "LightCbamModule": _refuse_light,
}
