"""The attention family made for inference: units, masks, attention modules, the network.

Between two pre-activation units two tensors pass: the sum x, and a, which is x normalised and
through a ReLU for the unit that comes next. Every block is called with both and with that next
normalisation (`following`), and gives both where one pass over memory makes them, which is on CUDA.
Elsewhere a is None and the block makes its own: what is passed lives on in its callers' frames.
`owned` says that x is nobody else's and may be overwritten.
"""

import copy
from collections.abc import Sequence

from torch import Tensor, nn

import ran_kernels
from ran_kernels import backends

from ..checks import require_images
from ..models.attention import AttentionModule, SoftMaskBranch
from ..models.residual_attention import ResidualAttentionNetwork
from ..models.units import PreActUnit, ResNeXtUnit
from .layers import Affine, Conv, Maker, require_kind

Pair = tuple[Tensor, Tensor | None]


class DeployedPreAct(nn.Module):
    """`models.units.PreActUnit`: two fused convolutions, then one that adds the shortcut."""

    def __init__(self, unit: PreActUnit, name: str, make: Maker) -> None:
        super().__init__()
        self.first: Affine | None = make.affine(unit.bn1, f"{name}.bn1")
        self.conv1 = make.conv(unit.conv1, unit.bn2, relu=True, name=f"{name}.conv1")
        self.conv2 = make.conv(unit.conv2, unit.bn3, relu=True, name=f"{name}.conv2")
        self.conv3 = make.conv(unit.conv3, name=f"{name}.conv3")
        self.shortcut: Conv | None = None
        if unit.shortcut is not None:
            self.shortcut = make.conv(unit.shortcut, name=f"{name}.shortcut")

    def forward(self, x: Tensor, a: Tensor | None, following: Affine | None, owned: bool) -> Pair:
        assert self.first is not None
        if a is None:
            a = self.first(x)
        y = self.conv2(self.conv1(a))
        if self.shortcut is not None:
            x, owned = self.shortcut(a), True
        del a
        if y.is_cuda and following is not None:
            # cuDNN adds only where a ReLU follows at once: the addition joins the normalisation.
            return following.of_sum(self.conv3(y), x)
        return self.conv3(y, x, into=owned), None


class DeployedResNeXt(nn.Module):
    """`models.units.ResNeXtUnit`: three fused convolutions, the last adds the shortcut as well."""

    first: Affine | None = None

    def __init__(self, unit: ResNeXtUnit, name: str, make: Maker) -> None:
        super().__init__()
        self.conv1 = make.conv(unit.conv1, unit.bn1, relu=True, name=f"{name}.conv1")
        self.conv2 = make.conv(unit.conv2, unit.bn2, relu=True, name=f"{name}.conv2")
        self.conv3 = make.conv(unit.conv3, unit.bn3, relu=True, name=f"{name}.conv3")
        self.shortcut: Conv | None = None
        if unit.shortcut is not None:
            self.shortcut = make.conv(*unit.shortcut, name=f"{name}.shortcut")

    def forward(self, x: Tensor, a: Tensor | None, following: Affine | None, owned: bool) -> Pair:
        y = self.conv2(self.conv1(x))
        if self.shortcut is not None:
            x, owned = self.shortcut(x), True
        return self.conv3(y, x, into=owned), None


class DeployedUnits(nn.Module):
    """Units one after the other, from a module that holds `models.units`' and nothing else."""

    def __init__(self, units: Sequence[nn.Module] | nn.Sequential, name: str, make: Maker) -> None:
        super().__init__()
        kinds = {PreActUnit: DeployedPreAct, ResNeXtUnit: DeployedResNeXt}
        for index, unit in enumerate(units):
            kind = kinds.get(type(unit))
            if kind is None:
                raise TypeError(
                    f"{name}.{index}: expected a PreActUnit or ResNeXtUnit, "
                    f"got {type(unit).__name__}"
                )
            self.add_module(str(index), kind(unit, f"{name}.{index}", make))

    @property
    def first(self) -> Affine | None:
        """The normalisation that the first unit opens with."""
        for unit in self.children():
            return unit.first  # type: ignore[return-value]
        return None

    def forward(self, x: Tensor, a: Tensor | None, following: Affine | None, owned: bool) -> Pair:
        units = list(self.children())
        if not units:
            return x, None
        for unit, then in zip(units, [*(unit.first for unit in units[1:]), following], strict=True):
            x, a = unit(x, a, then, owned)
            owned = True
        return x, a


class DeployedGate(nn.Module):
    """The mask's last convolution and the gate: its features and the trunk to the gated trunk."""

    def __init__(self, module: AttentionModule, name: str, make: Maker) -> None:
        super().__init__()
        self.activation, self.residual = module.activation, module.residual
        self.conv = make.conv(module.mask.head.conv2, name=f"{name}.mask.head.conv2")
        self.in_one = make.fuse_gate and module.activation == "mixed"

    def forward(self, x: Tensor, trunk: Tensor) -> Tensor:
        conv = self.conv
        # Where Triton does not run, `conv_gate` is two steps, and ours has its weights packed.
        asked = self.in_one and backends.current() in ("auto", "triton")
        if asked and backends.choose("conv_gate", trunk) == "triton":
            weight = conv.weight[:, :, 0, 0]
            return ran_kernels.conv_gate(x, weight, conv.bias, trunk, residual=self.residual)
        return ran_kernels.attention_gate(
            conv(x), trunk, residual=self.residual, activation=self.activation
        )


class DeployedMask(nn.Module):
    """`models.attention.SoftMaskBranch` but for its last convolution, which `DeployedGate` has."""

    def __init__(self, mask: SoftMaskBranch, name: str, make: Maker) -> None:
        super().__init__()
        self.depth, self.additive, self.pool = mask.depth, mask.additive, copy.deepcopy(mask.pool)

        def units(part: str) -> nn.ModuleList:
            levels = getattr(mask, part)
            return nn.ModuleList(
                DeployedUnits(level, f"{name}.{part}.{i}", make) for i, level in enumerate(levels)
            )

        self.down, self.skip, self.up = units("down"), units("skip"), units("up")
        self.bottom = DeployedUnits(mask.bottom, f"{name}.bottom", make)
        head = mask.head
        self.norm = None if head.bn1 is None else make.affine(head.bn1, f"{name}.head.bn1")
        self.conv = make.conv(head.conv1, head.bn2, relu=True, name=f"{name}.head.conv1")

    def enter(self, x: Tensor) -> Tensor:
        """What `forward` needs of the module's features x: pooled, or x itself at depth 0."""
        return self.pool(x) if self.depth else x

    def forward(self, x: Tensor, trunk: Tensor) -> Tensor:
        levels: list[Tensor] = []
        a = None
        for level, down in enumerate(self.down):
            last = level == self.depth - 1
            x = self.pool(x) if level else x
            x, a = down(x, None, self.bottom.first if last else None, True)
            if not last:
                levels.append(x)
        deep = self.depth > 0
        x, a = self.bottom(x, a, None if deep else self.norm, deep)
        for level in range(self.depth - 2, -1, -1):
            kept = levels.pop()
            skip, _ = self.skip[level](kept, None, None, not self.additive)
            if self.additive:
                skip = skip + kept
            x = ran_kernels.upsample_add(x, skip)
            del kept, skip
            x, _ = self.up[level](x, None, None, True)
        if deep:
            if self.additive:
                x = ran_kernels.upsample_add(x, trunk)
            else:
                x = ran_kernels.upsample(x, (trunk.shape[2], trunk.shape[3]))
        if a is None:
            a = x if self.norm is None else self.norm(x)
        del x
        return self.conv(a)


class DeployedAttention(nn.Module):
    """`models.attention.AttentionModule`."""

    def __init__(self, module: AttentionModule, name: str, make: Maker) -> None:
        super().__init__()
        self.pre = DeployedUnits(module.pre, f"{name}.pre", make)
        self.trunk = DeployedUnits(module.trunk, f"{name}.trunk", make)
        self.mask = DeployedMask(module.mask, f"{name}.mask", make)
        self.gate = DeployedGate(module, name, make)
        self.post = DeployedUnits(module.post, f"{name}.post", make)

    @property
    def first(self) -> Affine | None:
        """The normalisation that the module opens with, where it does open with one."""
        return self.pre.first

    def forward(self, x: Tensor, a: Tensor | None, following: Affine | None, owned: bool) -> Pair:
        x, a = self.pre(x, a, self.trunk.first, owned)
        mask = self.mask.enter(x)
        # Where the mask has its own already, the trunk may overwrite x.
        x, _ = self.trunk(x, a, None, owned and mask is not x)
        del a
        mask = self.mask(mask, x)
        x = self.gate(mask, x)
        del mask
        return self.post(x, None, following, True)


class DeployedResidualAttention(nn.Module):
    """`ran.ResidualAttentionNetwork`, images (N, in_chans, H, W) to logits (N, num_classes)."""

    def __init__(self, model: ResidualAttentionNetwork, make: Maker) -> None:
        super().__init__()
        self.in_chans, self.num_classes = model.in_chans, model.num_classes
        self.minimum_size = model.minimum_size
        stem = model.stem
        require_kind(stem.act, (nn.ReLU,), "stem.act")
        self.stem = make.conv(stem.conv, stem.norm, relu=True, name="stem")  # type: ignore[arg-type]
        self.stem_pool = copy.deepcopy(model.stem_pool)
        self.blocks = nn.ModuleList()
        for index, stage in enumerate(model.stages):
            for name, block in stage.named_children():
                name = f"stages.{index}.{name}"
                deployed = (
                    DeployedAttention(block, name, make)
                    if isinstance(block, AttentionModule)
                    else DeployedUnits([block], name, make)
                )
                self.blocks.append(deployed)
        self.norm: Affine | None = None
        identical = type(model.norm) is nn.Identity
        require_kind(model.act, (nn.Identity if identical else nn.ReLU,), "act")
        if not identical:
            self.norm = make.affine(model.norm, "norm")
        self.head = copy.deepcopy(model.head)

    def forward(self, x: Tensor) -> Tensor:
        require_images(x, self.in_chans, self.minimum_size)
        x = self.stem_pool(self.stem(x))
        a, owned = None, True
        nexts = [*(block.first for block in self.blocks[1:]), self.norm]
        for block, following in zip(self.blocks, nexts, strict=True):
            x, a = block(x, a, following, owned)
        if a is None:
            a = x if self.norm is None else self.norm(x)
        return self.head(a)
