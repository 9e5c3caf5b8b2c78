"""ResNets with CBAM made for inference, this library's and timm's after `ran_kernels.fuse`."""

import copy
from typing import Any

import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

import ran_kernels
from ran_kernels.nn import CBAM
from ran_kernels.parts import is_pointwise

from ..models.cbam_resnet import STAGES, CbamBasicBlock, CbamBottleneck
from .layers import Maker

#: The kinds of block, by how many convolutions their branch has.
BLOCKS: dict[type, int] = {CbamBasicBlock: 2, BasicBlock: 2, CbamBottleneck: 3, Bottleneck: 3}
#: What does nothing in evaluation and leaves nothing behind.
IDLE = (nn.Identity, nn.Dropout)


def _require(layer: object, kind: type[nn.Module], name: str) -> None:
    # No subclass: it may compute something else.
    if type(layer) is not kind:
        raise TypeError(f"{name}: expected {kind.__name__}, got {type(layer).__name__}")


class DeployedCBAM(nn.Module):
    """`ran_kernels.nn.CBAM` with the normalisation in its convolution."""

    def __init__(self, cbam: CBAM, name: str, make: Maker) -> None:
        super().__init__()
        layer = nn.Conv2d if cbam.mlp_conv else nn.Linear
        for part, kind in (("fc1", layer), ("fc2", layer), ("norm", nn.BatchNorm2d)):
            _require(getattr(cbam, part), kind, f"{name}.{part}")
        for part in ("fc1", "fc2"):
            if cbam.mlp_conv and not is_pointwise(getattr(cbam, part)):
                raise TypeError(f"{name}.{part}: expected a plain 1×1 convolution")
        self.fc1, self.fc2 = make.linear(cbam.fc1), make.linear(cbam.fc2, times=2)
        conv = copy.deepcopy(cbam.conv)
        if cbam.mean_first:  # the kernel's maps are maximum, then mean
            conv.weight.data = conv.weight.data.flip(1)
        self.conv = make.conv(conv, cbam.norm, name=f"{name}.conv")

    def forward(self, x: Tensor, shortcut: Tensor, relu: bool) -> Tensor:
        mean, maximum = ran_kernels.channel_pool(x)
        # mlp(mean) + mlp(maximum): the second layer is linear, and adds its bias for both.
        hidden = self.fc1(torch.cat([mean, maximum])).relu_()
        channel = self.fc2(hidden.unflatten(0, (2, -1)).sum(0))
        spatial = self.conv(ran_kernels.spatial_pool(x, channel))
        return ran_kernels.cbam_gate(x, channel, spatial, shortcut=shortcut, relu=relu)


class DeployedBlock(nn.Module):
    """A residual block: relu(CBAM(branch(x)) + shortcut(x)), CBAM being optional."""

    def __init__(self, block: Any, name: str, make: Maker) -> None:
        super().__init__()
        count = BLOCKS.get(type(block))
        if count is None:
            expected = ", ".join(sorted(kind.__name__ for kind in BLOCKS))
            raise TypeError(f"{name}: expected one of {expected}, got {type(block).__name__}")
        cbam = getattr(block, "cbam", None) or getattr(block, "se", None)
        if cbam is not None:
            hint = "; ran_kernels.fuse(model) puts it in the place of other libraries'"
            if type(cbam) is not CBAM:
                raise TypeError(
                    f"{name}.se: expected ran_kernels.nn.CBAM, got {type(cbam).__name__}{hint}"
                )
            cbam = DeployedCBAM(cbam, f"{name}.cbam", make)
        self.cbam: DeployedCBAM | None = cbam
        for part in ("act1", "act2", "act3"):
            if hasattr(block, part):
                _require(getattr(block, part), nn.ReLU, f"{name}.{part}")
        for part in ("aa", "drop_block"):
            if getattr(block, part, None) is not None:
                _require(getattr(block, part), nn.Identity, f"{name}.{part}")
        self.branch = nn.Sequential()
        for index in range(1, count + 1):
            last = index == count
            norm = getattr(block, f"bn{index}")
            _require(norm, nn.BatchNorm2d, f"{name}.bn{index}")
            conv = getattr(block, f"conv{index}")
            relu = not last or cbam is None
            layer = make.conv(conv, norm, relu=relu, name=f"{name}.conv{index}")
            self.branch.append(layer)
        self.downsample = None
        if block.downsample is not None:
            self.downsample = folded(block.downsample, f"{name}.downsample", make)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        *first, last = self.branch
        for conv in first:
            x = conv(x)
        if self.cbam is None:
            return last(x, shortcut)
        return self.cbam(last(x), shortcut, True)


def folded(layers: nn.Module, name: str, make: Maker) -> nn.Sequential:
    """A convolution or a sequence of layers with each normalisation and ReLU in its convolution.

    Raises TypeError for a sequence that is none of convolutions, their normalisations and ReLUs,
    and poolings.
    """
    given = layers if isinstance(layers, nn.Sequential) else [layers]
    rest = [layer for layer in given if type(layer) not in IDLE]
    made = nn.Sequential()
    while rest:
        layer = rest.pop(0)
        if type(layer) is nn.Conv2d:
            norm = rest.pop(0) if rest and type(rest[0]) is nn.BatchNorm2d else None
            relu = bool(rest) and type(rest[0]) is nn.ReLU
            if relu:
                rest.pop(0)
            made.append(make.conv(layer, norm, relu=relu, name=name))  # type: ignore[arg-type]
        elif type(layer) in (nn.MaxPool2d, nn.AvgPool2d):
            made.append(copy.deepcopy(layer))
        else:
            raise TypeError(
                f"{name}: expected convolutions with their normalisations and ReLUs, "
                f"got {type(layer).__name__}"
            )
    return made


class DeployedCbamResNet(nn.Module):
    """`ran.CbamResNet` or timm's ResNet, images (N, in_chans, H, W) to logits (N, num_classes)."""

    def __init__(self, model: ResNet, make: Maker) -> None:
        super().__init__()
        self.num_classes = model.num_classes
        stem: list[nn.Module] = []
        for part in (model.conv1, model.bn1, model.act1, model.maxpool):
            stem += part if isinstance(part, nn.Sequential) else [part]
        self.stem = folded(nn.Sequential(*stem), "conv1", make)
        self.in_chans = next(self.stem.buffers()).shape[1]  # of the first convolution's weights
        self.stages = nn.Sequential()
        for stage in STAGES:
            for name, block in getattr(model, stage).named_children():
                self.stages.append(DeployedBlock(block, f"{stage}.{name}", make))
        self.global_pool = copy.deepcopy(model.global_pool)
        self.fc = copy.deepcopy(model.fc)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.global_pool(self.stages(self.stem(x))))
