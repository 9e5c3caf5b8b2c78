"""The table of implementations whose checkpoints can be loaded."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from ..errors import UserError
from .caffe import CAFFE
from .cbam import OFFICIAL, PLAIN, TIMM
from .plan import Plan, Source, tensor_names
from .pytorchcv import PYTORCHCV
from .report import listed
from .tengshaofeng import TENGSHAOFENG


def _recognises_own(names: Iterable[str]) -> bool:
    own = ("stem.conv.weight", "layer1.0.cbam.fc1.weight")
    return any(name in own for name in names)


def _plan_own(model: nn.Module, tensors: Mapping[str, Tensor]) -> Plan:
    return Plan(tensor_names(model, {}))


#: In the order they are tried: plain residual networks' names are also in those with CBAM.
SOURCES = {
    "ran": Source(_recognises_own, _plan_own),
    "caffe": CAFFE,
    "tengshaofeng": TENGSHAOFENG,
    "pytorchcv": PYTORCHCV,
    "cbam": OFFICIAL,
    "timm": TIMM,
    "resnet": PLAIN,
}


def recognise(tensors: Mapping[str, Tensor]) -> str:
    """The source these tensors' names are of. Raises UserError for names of none."""
    for name, source in SOURCES.items():
        if source.recognises(tensors):
            return name
    raise UserError(
        f"expected names of one of {', '.join(SOURCES)}, got others: {listed(tuple(tensors))}"
    )
