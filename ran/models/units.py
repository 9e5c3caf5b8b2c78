"""Residual units, and what the blocks built of them share."""

from torch import Tensor, nn

from ran_kernels import Measured
from ran_kernels.nn import measured_convs, norm_add_relu, norm_measured, norm_relu_conv
from ran_kernels.parts import is_called_plainly

from ..checks import require_choice
from .modes import NORM_CONV
from .sums import Features, Sum, can_be_products, opened, opened_products, value_of

#: Groups of the 3×3 convolution in a ResNeXt unit: AttentionNeXt is built on ResNeXt 32×4d.
CARDINALITY = 32


class PreActUnit(nn.Module):
    """Pre-activation bottleneck unit, (N, in, H, W) to (N, out, ceil(H/stride), ceil(W/stride)).

    He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016. Where the shape changes,
    the shortcut is a 1×1 convolution that starts from the pre-activation, not from x. Where it
    stays, the shortcut is x and the unit holds no convolution for it.
    """

    #: Whether normalised activations are computed again in the backward instead of stored.
    recompute_norms = False
    #: Whether 1×1 convolutions take the norm before them in, with `ran_kernels.norm_relu_conv`.
    norm_conv = NORM_CONV

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        width = out_channels // 4
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.shortcut = (
            None
            if in_channels == out_channels and stride == 1
            else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return value_of(self.chain(x))

    def chain(self, x: Features) -> Features:
        """``forward``, with sums left open at both ends."""
        recompute = self.recompute_norms
        convs = (self.conv1,) if self.shortcut is None else (self.conv1, self.shortcut)
        if self.norm_conv and can_be_products(x):
            x, (first, *others) = opened_products(self.bn1, x, *convs, recompute=recompute)
            (y,) = norm_relu_conv(self.bn2, first, self.conv2, recompute=recompute)
            addend = others[0].value if others else x
            _, (total,) = measured_convs(
                self.bn3, y, self.conv3, addend=addend, recompute=recompute
            )
            return Sum.made(total)
        y, *shortcut = opened(self.bn1, x, *convs, recompute=recompute)
        (y,) = norm_relu_conv(self.bn2, y, self.conv2, recompute=recompute)
        (y,) = norm_relu_conv(self.bn3, y, self.conv3, recompute=recompute)
        return Sum(y, shortcut[0] if shortcut else value_of(x))


class ResNeXtUnit(nn.Module):
    """ResNeXt bottleneck unit, (N, in, H, W) to (N, out, ceil(H/stride), ceil(W/stride)).

    Xie et al., "Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017: a
    grouped 3×3 convolution of half the output's width, batch normalisation after each convolution,
    ReLU after the sum.
    """

    #: As in `PreActUnit`.
    recompute_norms = False
    norm_conv = NORM_CONV

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        width = out_channels // 2
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=CARDINALITY, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = (
            None
            if in_channels == out_channels and stride == 1
            else nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        recompute = self.recompute_norms
        if self.norm_conv and can_be_products(x):
            first, shortcut = opened_branches(x, self.conv1, self.shortcut)
            (y,) = norm_relu_conv(self.bn1, first, self.conv2, recompute=recompute)
            _, (last,) = measured_convs(self.bn2, y, self.conv3, recompute=recompute)
            return norm_add_relu(self.bn3, last, shortcut)
        (y,) = norm_relu_conv(self.bn1, self.conv1(x), self.conv2, recompute=recompute)
        (y,) = norm_relu_conv(self.bn2, y, self.conv3, recompute=recompute)
        return norm_add_relu(self.bn3, y, x if self.shortcut is None else self.shortcut(x))


def opened_branches(
    x: Tensor, conv: nn.Module, shortcut: nn.Module | None
) -> tuple[Measured, Tensor]:
    """Both branches of a post-activation block of x: its first convolution's result, measured, and
    its shortcut, a convolution and its norm, or none.
    """
    if type(shortcut) is nn.Sequential and len(shortcut) == 2 and is_called_plainly(shortcut):
        _, (first, other) = measured_convs(None, x, conv, shortcut[0], recompute=False)
        return first, norm_measured(shortcut[1], other)
    x, (first,) = measured_convs(None, x, conv, recompute=False)
    return first, x if shortcut is None else shortcut(x)


UNITS: dict[str, type[PreActUnit] | type[ResNeXtUnit]] = {
    "preact": PreActUnit,
    "resnext": ResNeXtUnit,
}

#: What a unit's output width must be a multiple of.
WIDTH_MULTIPLES = {"preact": 4, "resnext": 2 * CARDINALITY}


#: Where max-pooling places its windows: see :func:`max_pool`.
POOLS = ("caffe", "torch")


def unit_sequence(kind: str, channels: int, count: int) -> nn.Sequential:
    """``count`` units that keep (N, channels, H, W)."""
    require_choice("unit", UNITS, kind)
    return nn.Sequential(*(UNITS[kind](channels, channels) for _ in range(count)))


def max_pool(kernel: int, convention: str) -> nn.MaxPool2d:
    """Max-pooling of stride 2 as Caffe or as PyTorch models place its windows.

    "caffe" has no padding and rounds the output's size up, so the windows start at the first pixel
    and the last one may be cut. "torch" pads by half the kernel and rounds down. For a 3×3 kernel
    both give 112 → 56, from windows one pixel apart, but 57 → 28 and 57 → 29.
    """
    require_choice("pool", POOLS, convention)
    if convention == "caffe":
        return nn.MaxPool2d(kernel, stride=2, ceil_mode=True)
    return nn.MaxPool2d(kernel, stride=2, padding=(kernel - 1) // 2)


def init_weights(module: nn.Module) -> None:
    """Initialise one layer by its type, for ``model.apply``.

    Convolutions: He et al., "Delving Deep into Rectifiers", ICCV 2015, by their outputs. Batch
    normalisation: 1 and 0. Linear layers: a normal of deviation 0.01, bias 0.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
