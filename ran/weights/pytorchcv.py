"""pytorchcv's resattnet and cbam_resnet networks.

Its ``resattnet56`` to ``resattnet452`` are this package's ``attention56`` to ``attention452`` with
``graph="additive", pool="torch"``.
"""

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn

from ..models.residual_attention import ResidualAttentionNetwork
from .cbam import CbamNames, cbam_plan, require_cbam
from .plan import Plan, Source, require_attention, tensor_names, unit_layers

#: A unit's layers by the names of this package's: each convolution follows its normalisation.
_UNIT = {
    **{f"conv{number}": f"body.conv{number}.conv" for number in (1, 2, 3)},
    **{f"bn{number}": f"body.conv{number}.bn" for number in (1, 2, 3)},
    "shortcut": "identity_conv",
}
_STEM = "features.init_block.conv"
_CBAM = CbamNames(
    "cbam.ch_gate.mlp.fc1", "cbam.ch_gate.mlp.fc2", "cbam.sp_gate.conv.conv", "cbam.sp_gate.conv.bn"
)


def _recognises(names: Iterable[str]) -> bool:
    return f"{_STEM}.conv.weight" in names


def _plan(model: nn.Module, tensors: Mapping[str, Tensor]) -> Plan:
    if any(".cbam." in name for name in tensors):
        return cbam_plan(require_cbam(model), _CBAM, _resnet_layers(model))
    network = require_attention(
        model,
        unit="preact",
        graph="additive",
        pool="torch",
        activation="mixed",
        residual=True,
        strides=(1, 2, 2),
        mask_depths=(3, 2, 1),
        stem_stride=2,
        stem_pool=3,
        tail_stride=2,
        post_units=1,
    )
    return Plan(tensor_names(network, _attention_layers(network)))


def _resnet_layers(model: nn.Module) -> dict[str, str]:
    """The blocks of a CBAM network, and the layers outside its CBAM modules."""
    layers = {"conv1": f"{_STEM}.conv", "bn1": f"{_STEM}.bn", "fc": "output"}
    for stage in range(1, 5):
        for number, block in enumerate(model.get_submodule(f"layer{stage}").children(), start=1):
            ours, theirs = f"layer{stage}.{number - 1}", f"features.stage{stage}.unit{number}"
            for name, _ in block.named_children():
                if name in _UNIT:
                    layers[f"{ours}.{name}"] = f"{theirs}.{_UNIT[name]}"
            layers[f"{ours}.downsample.0"] = f"{theirs}.identity_conv.conv"
            layers[f"{ours}.downsample.1"] = f"{theirs}.identity_conv.bn"
            layers[ours] = theirs
    return layers


def _attention_layers(model: ResidualAttentionNetwork) -> dict[str, str]:
    spec = model.spec
    layers = {
        "stem.conv": f"{_STEM}.conv",
        "stem.norm": f"{_STEM}.bn",
        "norm": "features.post_activ.bn",
        "head.fc": "output",
    }
    units: dict[str, str] = {}
    for stage, depth in enumerate(spec.mask_depths):
        theirs = f"features.stage{stage + 1}.unit"
        units[f"stages.{stage}.unit"] = f"{theirs}1"
        for number in range(1, spec.modules[stage] + 1):
            ours, module = f"stages.{stage}.attention{number}", f"{theirs}{number + 1}"
            units |= dict(_module_units(model, ours, module, depth))
            for index in (1, 2):
                layers[f"{ours}.mask.head.bn{index}"] = f"{module}.middle_block.conv{index}.bn"
                layers[f"{ours}.mask.head.conv{index}"] = f"{module}.middle_block.conv{index}.conv"
    tail = len(spec.modules)
    for number in range(1, spec.tail_units + 1):
        units[f"stages.{tail}.unit{number}"] = f"features.stage{tail + 1}.unit{number}"
    for ours, unit in units.items():
        names = {name: f"{unit}.{layer}" for name, layer in _UNIT.items()}
        layers |= unit_layers(model, ours, names)
    return layers


def _module_units(
    model: ResidualAttentionNetwork, ours: str, theirs: str, depth: int
) -> Iterator[tuple[str, str]]:
    """An attention module's units: an hourglass whose outermost skip is the trunk."""
    spec, mask, hourglass = model.spec, f"{ours}.mask", f"{theirs}.hg"
    for unit in range(spec.p):
        yield f"{ours}.pre.{unit}", f"{theirs}.init_blocks.blocks.block{unit + 1}"
    for unit in range(spec.t):
        yield f"{ours}.trunk.{unit}", f"{hourglass}.skip_seq.skip1.blocks.block{unit + 1}"
    yield f"{ours}.post.0", f"{theirs}.final_block"
    for level in range(1, depth + 1):
        # The units before the first interpolation are those of the deepest level here.
        up = "bottom" if level == depth else f"up.{level - 1}"
        for unit in range(spec.r):
            block = f"res_blocks.blocks.block{unit + 1}"
            yield f"{mask}.down.{level - 1}.{unit}", f"{hourglass}.down_seq.down{level}.{block}"
            # Its way up counts the interpolations, the last of which has the trunk's size.
            yield f"{mask}.{up}.{unit}", f"{hourglass}.up_seq.up{level}.{block}"
    for level in range(1, depth):
        yield f"{mask}.skip.{level - 1}.0", f"{hourglass}.skip_seq.skip{level + 1}.skip1"


PYTORCHCV = Source(_recognises, _plan)
