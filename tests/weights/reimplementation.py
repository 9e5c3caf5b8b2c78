"""The reimplementation "tengshaofeng", written again from its facts.

A residual attention network of pre-activation units that goes its own ways in four: a shortcut
convolution in every unit, run or not; pooling with padding; the tensor that gives the size added to
each interpolation; one naming for networks of large images and another for those of 32×32.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from ran.models.spec import NetworkSpec


class Unit(nn.Module):
    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        width = out // 4
        sizes = [(channels, width, 1), (width, width, 3), (width, out, 1)]
        for index, (a, b, kernel) in enumerate(sizes, start=1):
            step = stride if kernel == 3 else 1
            self.add_module(f"bn{index}", nn.BatchNorm2d(a))
            conv = nn.Conv2d(a, b, kernel, step, padding=kernel // 2, bias=False)
            self.add_module(f"conv{index}", conv)
        self.conv4 = nn.Conv2d(channels, out, 1, stride, bias=False)
        self.keeps_shape = channels == out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = first = F.relu(self.get_submodule("bn1")(x))
        for index in (1, 2, 3):
            if index > 1:
                y = F.relu(self.get_submodule(f"bn{index}")(y))
            y = self.get_submodule(f"conv{index}")(y)
        return y + (x if self.keeps_shape else self.conv4(first))


def head(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(2):
        conv = nn.Conv2d(channels, channels, 1, bias=False)
        layers += [nn.BatchNorm2d(channels), nn.ReLU(), conv]
    return nn.Sequential(*layers, nn.Sigmoid())


class Module(nn.Module):
    """Its attention modules of depth 1 to 4 for large images, of depth 0 to 2 for small ones."""

    def __init__(self, channels: int, depth: int, small: bool) -> None:
        super().__init__()
        self.depth = depth
        # Names of the levels' units going down, of the two at the bottom, going up, of the head.
        self.down = [f"softmax{level}_blocks" for level in range(1, depth)]
        self.bottom = f"softmax{depth}_blocks"
        self.up = [f"softmax{number}_blocks" for number in range(depth + 1, 2 * depth)]
        self.head = f"softmax{2 * depth}_blocks"
        if small:
            self.down, self.up = ["down_residual_blocks1"], ["up_residual_blocks1"]
            self.down, self.up = self.down[: depth - 1], self.up[: depth - 1]
            self.bottom, self.head = "middle_2r_blocks", "conv1_1_blocks"
            if depth == 0:
                self.down = self.up = []
        self.skips = [f"skip{level}_connection_residual_block" for level in range(1, depth)]

        def unit() -> Unit:
            return Unit(channels, channels)

        for name in ("first_residual_blocks", "last_blocks", *self.down, *self.up, *self.skips):
            self.add_module(name, unit())
        for name in ("trunk_branches", self.bottom):
            self.add_module(name, nn.Sequential(unit(), unit()))
        self.add_module(self.head, head(channels))

    def run(self, name: str, x: Tensor) -> Tensor:
        return self.get_submodule(name)(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.run("first_residual_blocks", x)
        trunk = self.run("trunk_branches", x)
        levels = []
        for down in self.down:
            x = self.run(down, F.max_pool2d(x, 3, 2, padding=1))
            levels.append(x)
        if self.depth:
            x = F.max_pool2d(x, 3, 2, padding=1)
        x = self.run(self.bottom, x)
        for up in self.up:
            level = levels.pop()
            skip = self.run(self.skips[len(levels)], level)
            x = self.run(up, enlarge(x, level) + level + skip)
        if self.depth:
            x = enlarge(x, trunk) + trunk
        return self.run("last_blocks", (1 + self.run(self.head, x)) * trunk)


def enlarge(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)


class Reimplementation(nn.Module):
    """With the widths and module counts of a plan, everything else its own."""

    def __init__(self, spec: NetworkSpec, depths: tuple[int, ...], stem: int, pool: int) -> None:
        super().__init__()
        self.small, self.pool = stem < 7, pool
        width = spec.stem_width
        stride = 1 if self.small else 2
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, width, stem, stride, padding=stem // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.blocks: list[str] = []
        number = 4 - len(depths)
        for stage, depth in enumerate(depths):
            out = spec.widths[stage]
            self._add(f"residual_block{number}", Unit(width, out, 2 if stage else 1))
            width = out
            for index in range(1, spec.modules[stage] + 1):
                ending = "" if index == 1 else f"_{index}"
                module = Module(width, depth, self.small)
                self._add(f"attention_module{number}{ending}", module)
            number += 1
        for index in range(3):
            stride = 2 if index == 0 and not self.small else 1
            self._add(f"residual_block{4 + index}", Unit(width, spec.tail_width, stride))
            width = spec.tail_width
        self.mpool2 = nn.Sequential(OrderedDict({"0": nn.BatchNorm2d(width), "1": nn.ReLU()}))
        self.fc = nn.Linear(width, 10)

    def _add(self, name: str, block: nn.Module) -> None:
        self.blocks.append(name)
        self.add_module(name, block)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if self.pool:
            x = F.max_pool2d(x, self.pool, 2, padding=self.pool // 3)
        for name in self.blocks:
            x = self.get_submodule(name)(x)
        return self.fc(self.mpool2(x).mean(dim=(2, 3)))
