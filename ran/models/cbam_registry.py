"""The named CBAM networks: their plans, factories and registration with timm."""

from inspect import signature
from typing import Any

from timm.models import build_model_with_cfg, register_model

from ..checks import require
from .cbam_resnet import CbamResNet
from .modes import set_norm_conv
from .options import require_options
from .origin import record_origin

#: The plan of every CBAM network, by its name: arguments of :class:`ran.CbamResNet`.
CBAM_PLANS: dict[str, dict[str, Any]] = {
    "cbam_resnet18": {"block": "basic", "layers": (2, 2, 2, 2)},
    "cbam_resnet34": {"block": "basic", "layers": (3, 4, 6, 3)},
    "cbam_resnet50": {"layers": (3, 4, 6, 3)},
    "cbam_resnet101": {"layers": (3, 4, 23, 3)},
    "cbam_wide_resnet18_1_5": {
        "block": "basic",
        "layers": (2, 2, 2, 2),
        "channels": (96, 192, 384, 768),
    },
    "cbam_wide_resnet18_2": {
        "block": "basic",
        "layers": (2, 2, 2, 2),
        "channels": (128, 256, 512, 1024),
    },
    "cbam_resnext50_32x4d": {"layers": (3, 4, 6, 3), "cardinality": 32, "base_width": 4},
    "cbam_resnext101_32x4d": {"layers": (3, 4, 23, 3), "cardinality": 32, "base_width": 4},
}

_OPTIONS = signature(CbamResNet).parameters.keys() | {"norm_conv"}

#: What timm knows of each network, before it is registered: its input, and no weights.
default_cfgs = {
    name: {
        "first_conv": "conv1",
        "classifier": "fc",
        "interpolation": "bilinear",
        "paper_name": "CBAM: Convolutional Block Attention Module",
        "paper_ids": "arXiv:1807.06521",
    }
    for name in CBAM_PLANS
}


def _build(name: str, pretrained: bool, **options: Any) -> CbamResNet:
    require(not pretrained, "pretrained", f"False, as {name} has no weights here", pretrained)
    require_options(options, _OPTIONS, features=5)
    norm_conv = options.pop("norm_conv", None)
    model = build_model_with_cfg(
        CbamResNet,
        name,
        pretrained,
        feature_cfg={"feature_cls": "getter", "out_indices": (0, 1, 2, 3, 4)},
        **{**CBAM_PLANS[name], **options},
    )
    set_norm_conv(model, norm_conv)
    record_origin(model, name, options)
    return model


@register_model
def cbam_resnet18(pretrained: bool = False, **options: Any) -> CbamResNet:
    """ResNet-18 with CBAM."""
    return _build("cbam_resnet18", pretrained, **options)


@register_model
def cbam_resnet34(pretrained: bool = False, **options: Any) -> CbamResNet:
    """ResNet-34 with CBAM."""
    return _build("cbam_resnet34", pretrained, **options)


@register_model
def cbam_resnet50(pretrained: bool = False, **options: Any) -> CbamResNet:
    """ResNet-50 with CBAM."""
    return _build("cbam_resnet50", pretrained, **options)


@register_model
def cbam_resnet101(pretrained: bool = False, **options: Any) -> CbamResNet:
    """ResNet-101 with CBAM."""
    return _build("cbam_resnet101", pretrained, **options)


@register_model
def cbam_wide_resnet18_1_5(pretrained: bool = False, **options: Any) -> CbamResNet:
    """ResNet-18 with CBAM, stages 1.5 times as wide and the stem as it is."""
    return _build("cbam_wide_resnet18_1_5", pretrained, **options)


@register_model
def cbam_wide_resnet18_2(pretrained: bool = False, **options: Any) -> CbamResNet:
    """ResNet-18 with CBAM, stages twice as wide and the stem as it is."""
    return _build("cbam_wide_resnet18_2", pretrained, **options)


@register_model
def cbam_resnext50_32x4d(pretrained: bool = False, **options: Any) -> CbamResNet:
    """ResNeXt-50 of 32 groups of 4 channels, with CBAM."""
    return _build("cbam_resnext50_32x4d", pretrained, **options)


@register_model
def cbam_resnext101_32x4d(pretrained: bool = False, **options: Any) -> CbamResNet:
    """ResNeXt-101 of 32 groups of 4 channels, with CBAM."""
    return _build("cbam_resnext101_32x4d", pretrained, **options)
