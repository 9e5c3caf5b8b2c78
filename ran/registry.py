"""The named networks: their plans, factories and registration with timm."""

from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from timm.models import build_model_with_cfg, register_model
from torch import nn

from .network import ResidualAttentionNetwork
from .spec import SPEC_FIELDS, NetworkSpec, require

_WIDE = NetworkSpec(
    widths=(128, 256, 512),
    mask_depths=(2, 1, 0),
    stem_width=32,
    stem_kernel=3,
    stem_stride=1,
    stem_pool=0,
    tail_width=1024,
    tail_stride=1,
)
_POOL = replace(_WIDE, mask_depths=(2, 1, 1), stem_kernel=5, stem_pool=2)

#: The plan of every network, by its name.
SPECS = {
    "attention56": NetworkSpec(),
    "attention92": NetworkSpec(modules=(1, 2, 3)),
    "attention56_cifar_wide": _WIDE,
    "attention92_cifar_wide": replace(_WIDE, modules=(1, 2, 3)),
    "attention56_cifar_pool": _POOL,
    "attention92_cifar_pool": replace(_POOL, modules=(1, 2, 3)),
}

_COMMON_CFG = {
    "first_conv": "stem.conv",
    "classifier": "head.fc",
    "paper_name": "Residual Attention Network for Image Classification",
    "paper_ids": "arXiv:1704.06904",
}
_IMAGENET_CFG = {**_COMMON_CFG, "pool_size": (7, 7)}
_CIFAR_CFG = {
    **_COMMON_CFG,
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "crop_pct": 1.0,
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
}

#: What timm knows of each network: its input and no weights.
default_cfgs = {
    name: {
        **(_CIFAR_CFG if "cifar" in name else _IMAGENET_CFG),
        "min_input_size": (3, spec.minimum_size, spec.minimum_size),
    }
    for name, spec in SPECS.items()
}


def _build(name: str, pretrained: bool, **options: Any) -> ResidualAttentionNetwork:
    require(not pretrained, "pretrained", f"False (no weights of {name} are published)", pretrained)
    multiplier = options.pop("width_multiplier", 1.0)
    changes = {key: options.pop(key) for key in SPEC_FIELDS & options.keys()}
    # Plain widths and a multiplier together would leave unclear which is scaled.
    spec = replace(SPECS[name].scaled(multiplier), **changes)
    features = 1 + len(spec.modules) + (spec.tail_units > 0)
    return build_model_with_cfg(
        ResidualAttentionNetwork,
        name,
        pretrained,
        spec=spec,
        feature_cfg={"feature_cls": "getter", "out_indices": tuple(range(features))},
        **options,
    )


@register_model
def attention56(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-56 for ImageNet: one attention module in each stage."""
    return _build("attention56", pretrained, **options)


@register_model
def attention92(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-92 for ImageNet: one, two and three attention modules."""
    return _build("attention92", pretrained, **options)


@register_model
def attention56_cifar_wide(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-56 for 32×32 images, 3×3 stem, stages of 128, 256 and 512 channels."""
    return _build("attention56_cifar_wide", pretrained, **options)


@register_model
def attention92_cifar_wide(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-92 of the layout of ``attention56_cifar_wide``."""
    return _build("attention92_cifar_wide", pretrained, **options)


@register_model
def attention56_cifar_pool(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-56 for 32×32 images, 5×5 stem and a 2×2 pooling, the widths of the wide layout."""
    return _build("attention56_cifar_pool", pretrained, **options)


@register_model
def attention92_cifar_pool(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-92 of the layout of ``attention56_cifar_pool``."""
    return _build("attention92_cifar_pool", pretrained, **options)


def list_models() -> list[str]:
    """The names :func:`create_model` knows."""
    return list(SPECS)


def create_model(name: str, **options: Any) -> nn.Module:
    """A network by its name, with the options of :class:`ResidualAttentionNetwork`'s factories.

    ``num_classes``, ``in_chans``, ``global_pool``, ``drop_rate``; ``width_multiplier``, which
    scales every width; any field of :class:`NetworkSpec`; ``features_only`` and ``out_indices`` as
    in timm. Raises ValueError for an unknown name, with near ones, and for a value that cannot be.
    """
    if name not in SPECS:
        near = get_close_matches(name, SPECS)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"name: expected one of ran.list_models(), got {name!r}{hint}")
    return globals()[name](**options)
