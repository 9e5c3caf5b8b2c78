"""Residual networks with and without CBAM: the authors', timm's, and plain ones.

All three name the layers outside CBAM as torchvision and this package do.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from ran_kernels.nn import CBAM

from ..errors import UserError
from .plan import Change, Plan, Source, tensor_names

_PLAIN = "plain weights have no CBAM"
_NO_BIAS = "timm's perceptron has no bias"
_SWAPPED = "input channels swapped: the two maps come in the other order"


class CbamNames(NamedTuple):
    """The layers of a CBAM module in a checkpoint, from the residual block that holds it."""

    fc1: str
    fc2: str
    conv: str
    norm: str


_OFFICIAL = CbamNames(
    "cbam.ChannelGate.mlp.1",
    "cbam.ChannelGate.mlp.3",
    "cbam.SpatialGate.spatial.conv",
    "cbam.SpatialGate.spatial.bn",
)
_TIMM = CbamNames("se.channel.fc1", "se.channel.fc2", "se.spatial.conv.conv", "se.spatial.conv.bn")


def _modules(model: nn.Module) -> Iterator[tuple[str, CBAM]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, CBAM))


def require_cbam(model: nn.Module) -> nn.Module:
    """The model, if it is a residual network with CBAM whose strides are in the 3×3 convolutions.

    Every checkpoint that can be loaded has them there, which names and shapes do not show.
    Raises UserError for another model.
    """
    if not any(name.startswith("layer1.") for name, _ in _modules(model)):
        raise UserError(f"expected a CBAM network to load into, got {type(model).__name__}")
    for name, layer in model.named_modules():
        first = isinstance(layer, nn.Conv2d) and name.endswith(".conv1")
        if first and layer.kernel_size == (1, 1) and layer.stride != (1, 1):
            raise UserError(
                "these weights need a network with stride_in_1x1=False, this one has True"
            )
    return model


def cbam_plan(
    model: nn.Module, names: CbamNames, layers: Mapping[str, str], *, mean_first: bool = False
) -> Plan:
    """A plan with ``names`` in each CBAM module and ``layers`` outside.

    ``layers`` holds each residual block too, where the checkpoint calls it otherwise;
    ``mean_first`` is the order of the checkpoint's two maps.
    """
    inside, changes = {}, {}
    for ours, module in _modules(model):
        block = ours.rpartition(".")[0]
        for layer, theirs in names._asdict().items():
            inside[f"{ours}.{layer}"] = f"{layers.get(block, block)}.{theirs}"
        if module.mean_first != mean_first:
            changes[f"{ours}.conv.weight"] = Change(_SWAPPED, lambda weight: weight.flip(1))
    return Plan(tensor_names(model, {**layers, **inside}), changes)


def _recognises_official(names: Iterable[str]) -> bool:
    return any(".cbam.ChannelGate." in name for name in names)


def _plan_official(model: nn.Module, tensors: Mapping[str, Tensor]) -> Plan:
    return cbam_plan(require_cbam(model), _OFFICIAL, {})


def _recognises_timm(names: Iterable[str]) -> bool:
    return any(".se.spatial." in name for name in names)


def _plan_timm(model: nn.Module, tensors: Mapping[str, Tensor]) -> Plan:
    plan = cbam_plan(require_cbam(model), _TIMM, {}, mean_first=True)
    # Its perceptron is made of 1×1 convolutions.
    plan.squeezed = True
    for name, _ in _modules(model):
        for bias in (f"{name}.fc1.bias", f"{name}.fc2.bias"):
            if bias in plan.names and plan.names[bias] not in tensors:
                plan.zeros[bias] = _NO_BIAS
    return plan


def _recognises_plain(names: Iterable[str]) -> bool:
    return any(name.startswith("layer1.0.conv1.") for name in names)


def _plan_plain(model: nn.Module, tensors: Mapping[str, Tensor]) -> Plan:
    names = tensor_names(require_cbam(model), {})
    inside = tuple(f"{name}." for name, _ in _modules(model))
    return Plan(names, left={name: _PLAIN for name in names if name.startswith(inside)})


OFFICIAL = Source(_recognises_official, _plan_official)
TIMM = Source(_recognises_timm, _plan_timm)
PLAIN = Source(_recognises_plain, _plan_plain)
