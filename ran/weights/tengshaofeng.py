"""ResidualAttentionNetwork-pytorch, by tengshaofeng: the well-known PyTorch reimplementation.

Its networks in this package's terms, all with ``graph="additive", pool="torch"``:

======================================== ==================================================
``ResidualAttentionModel_56``, ``_92``    ``attention56``, ``attention92``
``ResidualAttentionModel_448input``       ``attention92_448``
``ResidualAttentionModel_92_32input``     ``attention92_cifar_pool(mask_depths=(2, 1, 0))``
``…_92_32input_update``                   ``attention92_cifar_wide``
======================================== ==================================================
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ..models.residual_attention import ResidualAttentionNetwork
from .plan import Plan, Source, require_attention, tensor_names, unit_layers

#: A unit's layers by the names of this package's.
_UNIT = {name: name for name in ("bn1", "conv1", "bn2", "conv2", "bn3", "conv3")}
#: Positions of a mask head's layers in its Sequential.
_HEAD = {"bn1": 0, "conv1": 2, "bn2": 3, "conv2": 5}
_DEAD = "a shortcut that its own network never runs"


def _recognises(names: Iterable[str]) -> bool:
    return any(name.startswith("attention_module") and "trunk_branches." in name for name in names)


def _plan(model: nn.Module, tensors: Mapping[str, Tensor]) -> Plan:
    small = any(".middle_2r_blocks." in name for name in tensors)
    network = require_attention(model, **_options(small, tensors))
    layers = _layers(network, small)
    names = tensor_names(network, layers)
    taken = set(names.values())
    # Each unit is built with a shortcut convolution, which one that keeps its shape leaves alone.
    units = {layer.removesuffix(".conv3") for layer in layers.values() if layer.endswith(".conv3")}
    shortcuts = {f"{unit}.conv4.weight" for unit in units} - taken
    return Plan(names, ignored={name: _DEAD for name in tensors if name in shortcuts})


def _options(small: bool, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Of the network that saved these tensors, what neither their names nor shapes show."""
    options: dict[str, Any] = {
        "unit": "preact",
        "graph": "additive",
        "pool": "torch",
        "activation": "mixed",
        "residual": True,
        "p": 1,
        "t": 2,
        "r": 1,
        "post_units": 1,
    }
    if small:
        # With a 5×5 convolution in front there is a pooling, with a 3×3 one there is none.
        stem = tensors.get("conv1.0.weight")
        pool = 2 if stem is not None and stem.shape[-1:] == (5,) else 0
        layout = {"stem_stride": 1, "stem_pool": pool, "tail_stride": 1}
        return {**options, **layout, "strides": (1, 2, 2), "mask_depths": (2, 1, 0)}
    large = any(name.startswith("residual_block0.") for name in tensors)
    strides, depths = ((1, 2, 2, 2), (4, 3, 2, 1)) if large else ((1, 2, 2), (3, 2, 1))
    layout = {"stem_stride": 2, "stem_pool": 3, "tail_stride": 2}
    return {**options, **layout, "strides": strides, "mask_depths": depths}


def _layers(model: ResidualAttentionNetwork, small: bool) -> dict[str, str]:
    spec = model.spec
    layers = {"stem.conv": "conv1.0", "stem.norm": "conv1.1", "norm": "mpool2.0", "head.fc": "fc"}
    # The tail's units are numbers 4 to 6, so that four stages start from 0.
    first = 4 - len(spec.modules)
    units: dict[str, str] = {}
    for stage, depth in enumerate(spec.mask_depths):
        units[f"stages.{stage}.unit"] = f"residual_block{first + stage}"
        for number in range(1, spec.modules[stage] + 1):
            ours = f"stages.{stage}.attention{number}"
            theirs = f"attention_module{first + stage}" + (f"_{number}" if number > 1 else "")
            units |= dict(_module_units(ours, theirs, depth, small))
            head = "conv1_1_blocks" if small else f"softmax{2 * depth}_blocks"
            for layer, position in _HEAD.items():
                layers[f"{ours}.mask.head.{layer}"] = f"{theirs}.{head}.{position}"
    for number in range(1, spec.tail_units + 1):
        units[f"stages.{len(spec.modules)}.unit{number}"] = f"residual_block{3 + number}"
    for ours, theirs in units.items():
        names = {name: f"{theirs}.{layer}" for name, layer in _UNIT.items()}
        names["shortcut"] = f"{theirs}.conv4"
        layers |= unit_layers(model, ours, names)
    return layers


def _module_units(ours: str, theirs: str, depth: int, small: bool) -> Iterator[tuple[str, str]]:
    yield f"{ours}.pre.0", f"{theirs}.first_residual_blocks"
    yield f"{ours}.trunk.0", f"{theirs}.trunk_branches.0"
    yield f"{ours}.trunk.1", f"{theirs}.trunk_branches.1"
    yield f"{ours}.post.0", f"{theirs}.last_blocks"
    mask = f"{ours}.mask"
    # The two units at the bottom are one Sequential; the first is the last level's, if any.
    bottom = f"{theirs}.middle_2r_blocks" if small else f"{theirs}.softmax{depth}_blocks"
    yield (f"{mask}.down.{depth - 1}.0" if depth else f"{mask}.bottom.0"), f"{bottom}.0"
    yield (f"{mask}.bottom.0" if depth else f"{mask}.bottom.1"), f"{bottom}.1"
    for level in range(1, depth):
        down = f"down_residual_blocks{level}" if small else f"softmax{level}_blocks"
        # Numbered in the order they run: the way up goes on where the bottom ended.
        up = f"up_residual_blocks{level}" if small else f"softmax{2 * depth - level}_blocks"
        yield f"{mask}.down.{level - 1}.0", f"{theirs}.{down}"
        yield f"{mask}.skip.{level - 1}.0", f"{theirs}.skip{level}_connection_residual_block"
        yield f"{mask}.up.{level - 1}.0", f"{theirs}.{up}"


TENGSHAOFENG = Source(_recognises, _plan)
