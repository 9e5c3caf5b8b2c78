"""ResNets with convolutional block attention: Woo et al., ECCV 2018 (arXiv 1807.06521)."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.fx
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from ran_kernels import Measured
from ran_kernels.nn import (
    CBAM,
    are_products,
    measured_convs,
    norm_act,
    norm_cbam,
    norm_relu_conv,
)

from ..checks import (
    is_count,
    require,
    require_choice,
    require_count,
    require_head,
    require_images,
    require_probability,
)
from .modes import NORM_CONV, checkpointed, evaluating, set_recomputing, stored
from .size import cbam_parameters, require_parameters
from .units import opened_branches

# As in residual_attention.py.
torch.fx.wrap("require_images")


class CbamGates(NamedTuple):
    """What one CBAM multiplied its features by, in [0, 1]."""

    channel: Tensor
    """(N, C, 1, 1)."""
    spatial: Tensor
    """(N, 1, H, W)."""


class _CbamBlock(nn.Module):
    """A residual block, (N, in, H, W) to (N, out, h, w): relu(CBAM(branch(x)) + shortcut(x))."""

    cbam: CBAM
    downsample: nn.Module | None
    grad_checkpointing = False
    #: As in `units.PreActUnit`.
    recompute_norms = False
    norm_conv = NORM_CONV

    def unnormalised(self, x: Tensor) -> tuple[nn.Module, Tensor]:
        """The residual branch's last normalisation, and what it normalises, (N, out, h, w)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing:
            return checkpointed(self, self._forward, x)
        return self._forward(x)

    def forward_attention(self, x: Tensor) -> tuple[Tensor, CbamGates]:
        """``forward``'s output beside the gates it came from."""
        norm, y = self.unnormalised(x)
        branch = norm(y)
        return self.cbam(branch, self._shortcut(x), relu=True), CbamGates(*self.cbam.gates(branch))

    def _forward(self, x: Tensor) -> Tensor:
        norm, y = self.unnormalised(x)
        return self._close(norm, y, self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        return x if self.downsample is None else self.downsample(x)

    def _close(self, norm: nn.Module, y: Tensor | Measured, shortcut: Tensor) -> Tensor:
        recompute = self.recompute_norms
        return norm_cbam(norm, y, self.cbam, shortcut, relu=True, recompute=recompute)


class CbamBasicBlock(_CbamBlock, BasicBlock):
    """Two 3×3 convolutions, CBAM, and the shortcut.

    ``arguments`` are those of timm's BasicBlock, ``reduction`` is that of ran_kernels.nn.CBAM.
    ``stride_in_1x1`` changes nothing, as there is no 1×1 convolution in the branch.
    """

    def __init__(
        self, *arguments: Any, reduction: int = 16, stride_in_1x1: bool = False, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        del self.act2  # CBAM adds the shortcut and ends in the ReLU
        self.cbam = CBAM(self.conv2.out_channels, reduction)

    def unnormalised(self, x: Tensor) -> tuple[nn.Module, Tensor]:
        recompute = self.recompute_norms
        (x,) = norm_relu_conv(self.bn1, self.conv1(x), self.conv2, recompute=recompute)
        return self.bn2, x


class CbamBottleneck(_CbamBlock, Bottleneck):
    """1×1, 3×3 (grouped in ResNeXt) and 1×1 convolution, CBAM, and the shortcut.

    ``arguments`` are those of timm's Bottleneck, ``reduction`` is that of ran_kernels.nn.CBAM.
    ``stride_in_1x1`` moves the stride from the 3×3 convolution to the first 1×1.
    """

    def __init__(
        self, *arguments: Any, reduction: int = 16, stride_in_1x1: bool = False, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        del self.act3  # CBAM adds the shortcut and ends in the ReLU
        if stride_in_1x1:
            self.conv1.stride, self.conv2.stride = self.conv2.stride, self.conv1.stride
        self.cbam = CBAM(self.conv3.out_channels, reduction)

    def _forward(self, x: Tensor) -> Tensor:
        if not self.norm_conv or not are_products(x):
            return super()._forward(x)
        recompute = self.recompute_norms
        first, shortcut = opened_branches(x, self.conv1, self.downsample)
        (y,) = norm_relu_conv(self.bn1, first, self.conv2, recompute=recompute)
        _, (last,) = measured_convs(self.bn2, y, self.conv3, recompute=recompute)
        return self._close(self.bn3, last, shortcut)

    def unnormalised(self, x: Tensor) -> tuple[nn.Module, Tensor]:
        recompute = self.recompute_norms
        (x,) = norm_relu_conv(self.bn1, self.conv1(x), self.conv2, recompute=recompute)
        (x,) = norm_relu_conv(self.bn2, x, self.conv3, recompute=recompute)
        return self.bn3, x


#: Residual blocks of a network, a second or two to build.
MOST_BLOCKS = 1_000
STAGES = ("layer1", "layer2", "layer3", "layer4")
BLOCKS: dict[str, type[_CbamBlock]] = {"basic": CbamBasicBlock, "bottleneck": CbamBottleneck}


class CbamResNet(ResNet):
    """ResNet or ResNeXt with CBAM in every block, (N, in_chans, H, W) to (N, num_classes).

    H and W may be any sizes. A timm ResNet otherwise, with the names of torchvision's parameters
    and ``cbam`` in each block. The plan is four stages of ``layers`` blocks.

    Args:
        block: "basic" or "bottleneck".
        layers: blocks of each stage.
        channels: of each stage, before a bottleneck's fourfold expansion. The stem keeps 64.
        cardinality: groups of a bottleneck's 3×3 convolution.
        base_width: channels of a group where the stage has 64.
        reduction: of the channel attention's perceptron.
        stride_in_1x1: halve the size in a bottleneck's first convolution, as in the paper's counts
            of multiply-adds, instead of in its 3×3 convolution, as in the authors' released code.
        num_classes: 0 leaves out the classifier.
        in_chans: channels of the images.
        global_pool: "avg", or "" to leave out the average pooling.
        drop_rate: dropout between pooling and classifier.

    Raises:
        ValueError: an argument or an input's shape cannot work; it is named.
    """

    #: What timm knows of the network, such as its input's size, mean and deviation.
    pretrained_cfg: dict[str, Any]
    #: The smallest height or width of an input.
    minimum_size = 1
    #: Not timm's ``grad_checkpointing``, which would have its own loop recompute the stages.
    _recomputing = False

    def __init__(
        self,
        block: str = "bottleneck",
        layers: Sequence[int] = (3, 4, 6, 3),
        channels: Sequence[int] = (64, 128, 256, 512),
        cardinality: int = 1,
        base_width: int = 64,
        reduction: int = 16,
        stride_in_1x1: bool = False,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        require_choice("block", BLOCKS, block)
        for name, values in (("layers", layers), ("channels", channels)):
            four = isinstance(values, Sequence) and len(values) == 4
            counts = four and all(is_count(value, 1) for value in values)
            require(counts, name, "four integers of at least 1", values)
        for name, value in (
            ("cardinality", cardinality),
            ("base_width", base_width),
            ("reduction", reduction),
            ("in_chans", in_chans),
        ):
            require_count(name, 1, value)
        if block == "basic":
            require(cardinality == 1, "cardinality", "1 for basic blocks", cardinality)
            require(base_width == 64, "base_width", "64 for basic blocks", base_width)
        require_choice("stride_in_1x1", (False, True), stride_in_1x1)
        require_probability("drop_rate", drop_rate)
        require_head(num_classes, global_pool)
        require(sum(layers) <= MOST_BLOCKS, "layers", f"at most {MOST_BLOCKS:,} in all", layers)
        expected = "at least one channel in each group"
        require(min(channels) * base_width >= 64, "base_width", expected, base_width)
        parameters = cbam_parameters(
            block, layers, channels, cardinality, base_width, reduction, in_chans, num_classes
        )
        require_parameters("channels", parameters)
        super().__init__(
            BLOCKS[block],  # type: ignore[arg-type] # timm annotates a class as its instance
            tuple(layers),
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            cardinality=cardinality,
            base_width=base_width,
            channels=tuple(channels),
            drop_rate=drop_rate,
            zero_init_last=False,
            block_args={"reduction": reduction, "stride_in_1x1": stride_in_1x1},
        )

    def init_weights(self, zero_init_last: bool = False) -> None:
        """Initialise as torchvision's ResNet; CBAM keeps its own start, with a norm of scale 0."""
        _init_convolutions(self)
        if zero_init_last:
            for _, block in self._blocks():
                block.zero_init_last()

    def forward_features(self, x: Tensor) -> Tensor:
        """Features (N, num_features, h, w) before the pooling, from images (N, in_chans, H, W)."""
        require_images(x, self.in_chans, self.minimum_size)
        run = checkpointed if self._recomputing else stored
        x = run(self.bn1, self._open, x)
        for stage in STAGES:
            x = getattr(self, stage)(x)
        return x

    def forward_intermediates(
        self, x: Tensor, *arguments: Any, **options: Any
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features of the stem (before its pooling) and of each stage: timm's ResNet has more."""
        require_images(x, self.in_chans, self.minimum_size)
        return super().forward_intermediates(x, *arguments, **options)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a newly initialised one of ``num_classes``, 0 for none."""
        current = self.global_pool.pool_type
        require_head(num_classes, current if global_pool is None else global_pool)
        super().reset_classifier(num_classes, global_pool)

    def set_grad_checkpointing(self, enable: bool | str = True) -> None:
        """Compute activations again in the backward instead of storing them.

        True: the stem and each block, from their inputs. "norms": what the blocks' normalisations
        give to convolutions, from what they normalise, which costs a pass over memory and no
        convolution. Gradients and running statistics are those of the network without
        checkpointing. For the latter the blocks do it themselves: timm's own loop counts a batch
        twice.
        """
        self._recomputing = set_recomputing(self, enable)
        for _, block in self._blocks():
            block.grad_checkpointing = self._recomputing

    @torch.no_grad()
    def attention_masks(self, x: Tensor) -> dict[str, Tensor]:
        """The gates of images x (N, in_chans, H, W) by name, in the order they are applied.

        For each block "layer1.0.cbam.channel" (N, C, 1, 1) and "layer1.0.cbam.spatial"
        (N, 1, H', W'), both in [0, 1]. Runs in evaluation mode and without gradients, and leaves
        every module's mode and running statistics as they were.
        """
        require_images(x, self.in_chans, self.minimum_size)
        masks: dict[str, Tensor] = {}
        with evaluating(self):
            x = self._open(x)
            for name, block in self._blocks():
                x, gates = block.forward_attention(x)
                masks[f"{name}.cbam.channel"] = gates.channel
                masks[f"{name}.cbam.spatial"] = gates.spatial
        return masks

    def _open(self, x: Tensor) -> Tensor:
        return self.maxpool(norm_act(self.bn1, self.act1, self.conv1(x)))

    def _blocks(self) -> Iterator[tuple[str, Any]]:
        for stage in STAGES:
            for name, block in getattr(self, stage).named_children():
                yield f"{stage}.{name}", block


def _init_convolutions(module: nn.Module) -> None:
    # He et al., ICCV 2015, by the outputs.
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if not isinstance(module, CBAM):
        for child in module.children():
            _init_convolutions(child)
