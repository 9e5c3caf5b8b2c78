"""What is known of every named network: its size, its cost, its published error."""

from dataclasses import dataclass

from .registry import default_cfgs, list_models


@dataclass(frozen=True)
class Published:
    """Error in percent, single crop, that the authors print for a network they trained."""

    data: str
    top1: float
    top5: float | None
    source: str

    def __str__(self) -> str:
        top5 = "" if self.top5 is None else f" / {self.top5:g}"
        return f"{self.data}: {self.top1:g}{top5} ({self.source})"


@dataclass(frozen=True)
class Row:
    """One network, as it is built without options."""

    name: str
    parameters: int
    """Learnable, for the classes of its data set."""
    multiply_adds: int
    """Of the convolutions and linear layers for one image of ``input_size``."""
    input_size: tuple[int, int, int]
    """(C, H, W)."""
    published: tuple[Published, ...]
    """Empty where the authors print none. No weights come with this package."""


def catalogue() -> list[Row]:
    """A row for each name of :func:`ran.list_models`, in its order."""
    return [
        Row(
            name,
            *_COUNTS[name],
            default_cfgs.get(name, {}).get("input_size", (3, 224, 224)),
            _PUBLISHED.get(name, ()),
        )
        for name in list_models()
    ]


_RAN = "Wang et al., CVPR 2017"
_CBAM = "Woo et al., ECCV 2018"


def _imagenet(top1: float, top5: float, source: str, size: int = 224) -> tuple[Published, ...]:
    return (Published(f"ImageNet at {size}", top1, top5, source),)


def _cifar(top1_of_10: float, top1_of_100: float) -> tuple[Published, ...]:
    return (
        Published("CIFAR-10", top1_of_10, None, _RAN),
        Published("CIFAR-100", top1_of_100, None, _RAN),
    )


# Attention-452 for CIFAR is missing, as its layout here has 9.9 M parameters and the paper's 8.6 M.
# No layout of m equal modules a stage has 1.9, 5.1 and 8.6 M at m = 2, 6 and 12: every m adds the
# same, from the first two at least (5.05 - 1.95) / 4 M, which makes 9.7 M or more at m = 12. Nor
# have, at the widths here, fewer modules of longer branches (p, t, r) that are 452 layers deep.
_PUBLISHED: dict[str, tuple[Published, ...]] = {
    "attention56": _imagenet(21.76, 5.9, _RAN),
    "attention92": _imagenet(19.5, 4.8, _RAN, size=320),
    "attentionnext56": _imagenet(21.2, 5.6, _RAN),
    "attention92_cifar": _cifar(4.99, 21.71),
    "attention236_cifar": _cifar(4.14, 21.16),
    "cbam_resnet50": _imagenet(22.66, 6.31, _CBAM),
    "cbam_resnet101": _imagenet(21.51, 5.69, _CBAM),
    "cbam_wide_resnet18_2": _imagenet(24.84, 7.63, _CBAM),
    "cbam_resnext50_32x4d": _imagenet(21.92, 5.91, _CBAM),
}

# (parameters, multiply-adds) as ran.count_parameters and ran.count_multiply_adds find them, which
# takes a minute for all.
_COUNTS = {
    "attention56": (31_810_728, 6_270_836_736),
    "attention92": (52_466_344, 10_533_789_696),
    "attention128": (65_294_504, 14_899_101_696),
    "attention164": (78_122_664, 19_264_413_696),
    "attention200": (90_950_824, 23_629_725_696),
    "attention236": (103_778_984, 27_995_037_696),
    "attention452": (182_285_224, 44_386_131_968),
    "attentionnext56": (31_318_824, 6_419_106_816),
    "attentionnext92": (52_102_952, 10_704_337_920),
    "attention92_448": (52_810_920, 12_825_729_024),
    "attention56_cifar": (1_135_226, 122_407_424),
    "attention92_cifar": (1_932_474, 211_077_632),
    "attention128_cifar": (2_729_722, 299_747_840),
    "attention164_cifar": (3_526_970, 388_418_048),
    "attention236_cifar": (5_121_466, 565_758_464),
    "attention452_cifar": (9_904_954, 1_097_779_712),
    "attention56_cifar_wide": (7_202_794, 694_396_928),
    "attention92_cifar_wide": (12_170_730, 1_089_185_792),
    "attention56_cifar_pool": (7_204_330, 169_158_656),
    "attention92_cifar_pool": (12_172_266, 254_486_528),
    "cbam_resnet18": (11_779_392, 1_815_063_764),
    "cbam_resnet34": (21_960_468, 3_665_434_742),
    "cbam_resnet50": (28_089_624, 4_095_573_110),
    "cbam_resnet101": (49_330_172, 7_812_577_278),
    "cbam_wide_resnet18_1_5": (26_075_516, 3_867_535_060),
    "cbam_wide_resnet18_2": (45_971_256, 6_697_219_284),
    "cbam_resnext50_32x4d": (27_561_496, 4_236_868_726),
    "cbam_resnext101_32x4d": (48_958_716, 7_981_168_638),
}
