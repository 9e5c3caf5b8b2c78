"""The authors' Caffe networks: arrays named by the layers of their published graphs."""

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn

from ..models.residual_attention import ResidualAttentionNetwork
from .plan import Plan, Source, require_attention, tensor_names, unit_layers

#: Position of an array in its layer. A BN layer holds scale, shift, mean and variance.
_POSITIONS = {"weight": 0, "bias": 1, "running_mean": 2, "running_var": 3}


def _recognises(names: Iterable[str]) -> bool:
    return any("/branch1/conv1_1x1" in name for name in names)


def _plan(model: nn.Module, tensors: Mapping[str, Tensor]) -> Plan:
    network = require_attention(
        model,
        graph="authors",
        pool="caffe",
        activation="mixed",
        residual=True,
        strides=(1, 2, 2),
        mask_depths=(3, 2, 1),
        stem_stride=2,
        stem_pool=3,
        tail_stride=2,
        p=1,
        t=2,
        r=1,
        post_units=1,
    )
    names = {}
    for ours, theirs in tensor_names(network, _layers(network)).items():
        layer, _, tensor = theirs.rpartition(".")
        # Caffe's networks do not count batches.
        names[ours] = f"{layer}.{_POSITIONS.get(tensor, tensor)}"
    return Plan(names, squeezed=True)


def _layers(model: ResidualAttentionNetwork) -> dict[str, str]:
    """The graph's layer names by the model's.

    What a pre-activation unit normalises first, the graph computes once for all who read it and
    names after who gave it; so ``bn1`` has its predecessor's name, not its unit's.
    """
    preact = model.spec.unit == "preact"
    layers = {"stem.conv": "conv1", "stem.norm": "conv1/bn", "head.fc": "classifier"}
    before = ""
    for ours, unit, before in _units(model):
        one, two, three = (f"{unit}/branch1/{c}" for c in ("conv1_1x1", "conv2_3x3", "conv3_1x1"))
        names = {"conv1": one, "conv2": two, "conv3": three}
        if preact:
            names |= {"bn1": f"{before}/bn", "bn2": f"{one}/bn", "bn3": f"{two}/bn"}
            names["shortcut"] = f"{unit}/branch2/conv1_1x1"
        else:
            names |= {"bn1": f"{one}/bn", "bn2": f"{two}/bn", "bn3": f"{three}/bn"}
            names["shortcut.0"] = f"{unit}/branch2/conv1_1x1"
            names["shortcut.1"] = f"{unit}/branch2/conv1_1x1/bn"
        layers |= unit_layers(model, ours, names)
        before = unit
    for ours, module in _modules(model):
        layers |= {
            f"{ours}.mask.head.bn1": f"{module}/mask/up_sample/interp_1/bn",
            f"{ours}.mask.head.conv1": f"{module}/mask/linear_1",
            f"{ours}.mask.head.bn2": f"{module}/mask/linear_1/bn",
            f"{ours}.mask.head.conv2": f"{module}/mask/linear_2",
        }
    layers["norm"] = f"{before}/bn"
    return layers


def _modules(model: ResidualAttentionNetwork) -> Iterator[tuple[str, str]]:
    """Each attention module's name in the model and in the graph."""
    for stage, letter in enumerate("ABC"):
        for number in range(1, model.spec.modules[stage] + 1):
            yield f"stages.{stage}.attention{number}", f"Attention{letter}_{number}"


def _units(model: ResidualAttentionNetwork) -> Iterator[tuple[str, str, str]]:
    """Each unit's name in the model, its name in the graph, and what the graph reads it from."""
    before = "pool1_3x3_s2"
    modules = list(_modules(model))
    for stage, depth in enumerate(model.spec.mask_depths):
        name = f"pre_res_{stage + 1}"
        yield f"stages.{stage}.unit", name, before
        before = name
        for ours, module in modules:
            if ours.startswith(f"stages.{stage}."):
                yield from _module_units(model, ours, module, depth, before)
                before = module
    for number in range(1, model.spec.tail_units + 1):
        name = f"post_res_4_{number}"
        yield f"stages.{len(model.spec.modules)}.unit{number}", name, before
        before = name


def _module_units(
    model: ResidualAttentionNetwork, ours: str, module: str, depth: int, before: str
) -> Iterator[tuple[str, str, str]]:
    trunk = f"{module}/trunk/res"
    yield f"{ours}.pre.0", f"{trunk}1", before
    yield f"{ours}.trunk.0", f"{trunk}2", f"{trunk}1"
    yield f"{ours}.trunk.1", f"{trunk}3", f"{trunk}2"
    # The two kinds of graph write these two words differently.
    suffix = "_sample" if model.spec.unit == "preact" else ""
    down, up = f"{module}/mask/down{suffix}", f"{module}/mask/up{suffix}"
    for level in range(1, depth + 1):
        yield (
            f"{ours}.mask.down.{level - 1}.0",
            f"{down}/res{level}_1",
            f"{down}/pool{level}_3x3_s2",
        )
    yield f"{ours}.mask.bottom.0", f"{down}/res{depth}_2", f"{down}/res{depth}_1"
    for level in range(1, depth):
        yield (
            f"{ours}.mask.skip.{level - 1}.0",
            f"{module}/mask/skip/res{level}",
            f"{down}/res{level}_1",
        )
        # The sum of interpolation and skip unit is one level above the unit that reads it.
        yield f"{ours}.mask.up.{level - 1}.0", f"{up}/res{level}_1", f"{up}{level}"
    yield f"{ours}.post.0", module, f"{module}/fusion"


CAFFE = Source(_recognises, _plan)
