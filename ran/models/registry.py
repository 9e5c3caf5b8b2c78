"""The named networks: their plans, factories and registration with timm."""

from dataclasses import replace
from typing import Any

from timm.models import build_model_with_cfg, model_entrypoint, register_model
from torch import nn

from ..checks import require, require_known
from .cbam_registry import CBAM_PLANS
from .modes import set_norm_conv
from .options import require_options
from .origin import record_origin
from .residual_attention import ResidualAttentionNetwork
from .spec import SPEC_FIELDS, NetworkSpec

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
# The paper prints no layout for CIFAR. These widths and depths give its parameter counts of
# Attention-92 and Attention-236.
_SLIM = replace(_WIDE, widths=(64, 128, 256), mask_depths=(2, 2, 1), stem_width=16, tail_width=256)

_IMAGENET = {
    "attention56": NetworkSpec(),
    "attention92": NetworkSpec(modules=(1, 2, 3)),
    "attention128": NetworkSpec(modules=(2, 3, 4)),
    "attention164": NetworkSpec(modules=(3, 4, 5)),
    "attention200": NetworkSpec(modules=(4, 5, 6)),
    "attention236": NetworkSpec(modules=(5, 6, 7)),
    "attention452": NetworkSpec(modules=(5, 6, 7), p=2, t=4, r=3, post_units=1),
    "attentionnext56": NetworkSpec(unit="resnext"),
    "attentionnext92": NetworkSpec(unit="resnext", modules=(1, 2, 3)),
}
_LARGE = {
    "attention92_448": NetworkSpec(
        modules=(1, 1, 2, 3),
        widths=(128, 256, 512, 1024),
        strides=(1, 2, 2, 2),
        mask_depths=(4, 3, 2, 1),
    ),
}
_CIFAR = {
    "attention56_cifar": _SLIM,
    "attention92_cifar": replace(_SLIM, modules=(2, 2, 2)),
    "attention128_cifar": replace(_SLIM, modules=(3, 3, 3)),
    "attention164_cifar": replace(_SLIM, modules=(4, 4, 4)),
    "attention236_cifar": replace(_SLIM, modules=(6, 6, 6)),
    "attention452_cifar": replace(_SLIM, modules=(12, 12, 12)),
    "attention56_cifar_wide": _WIDE,
    "attention92_cifar_wide": replace(_WIDE, modules=(1, 2, 3)),
    "attention56_cifar_pool": _POOL,
    "attention92_cifar_pool": replace(_POOL, modules=(1, 2, 3)),
}

#: The plan of every network, by its name.
SPECS: dict[str, NetworkSpec] = {**_IMAGENET, **_LARGE, **_CIFAR}

_IMAGENET_CFG: dict[str, Any] = {
    "first_conv": "stem.conv",
    "classifier": "head.fc",
    "paper_name": "Residual Attention Network for Image Classification",
    "paper_ids": "arXiv:1704.06904",
}
_CIFAR_CFG = {
    **_IMAGENET_CFG,
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "crop_pct": 1.0,
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
}

#: What timm knows of each network, before it is registered: its input, and no weights.
default_cfgs = {
    name: {**cfg, "min_input_size": (3, spec.minimum_size, spec.minimum_size)}
    for specs, cfg in (
        (_IMAGENET, _IMAGENET_CFG),
        (_LARGE, {**_IMAGENET_CFG, "input_size": (3, 448, 448)}),
        (_CIFAR, _CIFAR_CFG),
    )
    for name, spec in specs.items()
}


_OPTIONS = SPEC_FIELDS | {"width_multiplier", "norm_conv"}


def _build(name: str, pretrained: bool, **options: Any) -> ResidualAttentionNetwork:
    require(not pretrained, "pretrained", f"False, as {name} has no published weights", pretrained)
    norm_conv = options.pop("norm_conv", None)
    given = dict(options)
    spec = SPECS[name].scaled(options.pop("width_multiplier", 1.0))
    spec = replace(spec, **{key: options.pop(key) for key in SPEC_FIELDS & options.keys()})
    features = 1 + len(spec.modules) + (spec.tail_units > 0)
    require_options(given, _OPTIONS, features)
    model = build_model_with_cfg(
        ResidualAttentionNetwork,
        name,
        pretrained,
        spec=spec,
        feature_cfg={"feature_cls": "getter", "out_indices": tuple(range(features))},
        **options,
    )
    set_norm_conv(model, norm_conv)
    record_origin(model, name, given)
    return model


@register_model
def attention56(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-56: one attention module in each stage (the paper's table 2)."""
    return _build("attention56", pretrained, **options)


@register_model
def attention92(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-92: one, two and three attention modules."""
    return _build("attention92", pretrained, **options)


@register_model
def attention128(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-128: two, three and four attention modules."""
    return _build("attention128", pretrained, **options)


@register_model
def attention164(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-164: three, four and five attention modules."""
    return _build("attention164", pretrained, **options)


@register_model
def attention200(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-200: four, five and six attention modules."""
    return _build("attention200", pretrained, **options)


@register_model
def attention236(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-236: five, six and seven attention modules."""
    return _build("attention236", pretrained, **options)


@register_model
def attention452(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-452: the modules of Attention-236 with p=2, t=4, r=3 and one unit after."""
    return _build("attention452", pretrained, **options)


@register_model
def attentionnext56(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """AttentionNeXt-56: Attention-56 of ResNeXt units."""
    return _build("attentionnext56", pretrained, **options)


@register_model
def attentionnext92(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """AttentionNeXt-92: Attention-92 of ResNeXt units."""
    return _build("attentionnext92", pretrained, **options)


@register_model
def attention92_448(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-92 for 448×448 images: one more stage in front, with masks of depth 4."""
    return _build("attention92_448", pretrained, **options)


@register_model
def attention56_cifar(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-56 for 32×32 images in stages of 64, 128 and 256 channels."""
    return _build("attention56_cifar", pretrained, **options)


@register_model
def attention92_cifar(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-92 for 32×32 images: 1.93 M parameters (the paper prints 1.9 M)."""
    return _build("attention92_cifar", pretrained, **options)


@register_model
def attention128_cifar(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-128 for 32×32 images: three modules in each stage."""
    return _build("attention128_cifar", pretrained, **options)


@register_model
def attention164_cifar(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-164 for 32×32 images: four modules in each stage."""
    return _build("attention164_cifar", pretrained, **options)


@register_model
def attention236_cifar(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-236 for 32×32 images: 5.12 M parameters (the paper prints 5.1 M)."""
    return _build("attention236_cifar", pretrained, **options)


@register_model
def attention452_cifar(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-452 for 32×32 images: 9.90 M parameters.

    The paper prints 8.6 M. No layout of equal stages has all three of its counts: they would lie
    on a line in the number of modules.
    """
    return _build("attention452_cifar", pretrained, **options)


@register_model
def attention56_cifar_wide(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-56 for 32×32 images: 3×3 stem, stages of 128, 256 and 512 channels."""
    return _build("attention56_cifar_wide", pretrained, **options)


@register_model
def attention92_cifar_wide(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-92 of the layout of ``attention56_cifar_wide``."""
    return _build("attention92_cifar_wide", pretrained, **options)


@register_model
def attention56_cifar_pool(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-56 for 32×32 images: 5×5 stem and a 2×2 pooling, the wide channels."""
    return _build("attention56_cifar_pool", pretrained, **options)


@register_model
def attention92_cifar_pool(pretrained: bool = False, **options: Any) -> ResidualAttentionNetwork:
    """Attention-92 of the layout of ``attention56_cifar_pool``."""
    return _build("attention92_cifar_pool", pretrained, **options)


def list_models() -> list[str]:
    """The names :func:`create_model` knows."""
    return [*SPECS, *CBAM_PLANS]


def create_model(name: str, **options: Any) -> nn.Module:
    """A network by its name.

    Options of all: ``num_classes``, ``in_chans``, ``global_pool`` and ``drop_rate``;
    ``features_only`` with ``out_indices`` for timm's feature extractor; ``norm_conv``, whether 1×1
    convolutions take the norms before them in where Triton can run them
    (:func:`ran_kernels.norm_relu_conv`), by default as RAN_NORM_CONV says, 0 or 1. Of residual
    attention networks: any field of :class:`NetworkSpec`, in place of the plan's, and
    ``width_multiplier``, which scales every width of it. Of CBAM networks: the arguments of
    :class:`ran.CbamResNet`.

    Raises ValueError for an unknown name or option, with near ones, and for a value that cannot
    be built.
    """
    require_known("name", list_models(), name, listed="ran.list_models()")
    return model_entrypoint(name)(**options)
