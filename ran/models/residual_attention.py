"""The residual attention network: Wang et al., CVPR 2017."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.fx
from timm.layers import ClassifierHead
from torch import Tensor, nn

from ran_kernels.nn import norm_act
from ran_kernels.parts import is_called_plainly

from ..checks import (
    require,
    require_choice,
    require_count,
    require_head,
    require_images,
    require_probability,
)
from .attention import AttentionFeatures, AttentionModule
from .modes import checkpointed, evaluating, set_recomputing, stored
from .size import attention_parameters, require_parameters
from .spec import NetworkSpec
from .sums import Features, Sum, chained, value_of
from .units import UNITS, init_weights, max_pool

# For torch.fx, which cannot look into what asks for a shape: a call of its own in the graph.
torch.fx.wrap("require_images")


def _make_stem(spec: NetworkSpec, in_chans: int) -> nn.Sequential:
    kernel, width = spec.stem_kernel, spec.stem_width
    conv = nn.Conv2d(in_chans, width, kernel, spec.stem_stride, padding=kernel // 2, bias=False)
    return nn.Sequential(
        OrderedDict(conv=conv, norm=nn.BatchNorm2d(width), act=nn.ReLU(inplace=True))
    )


def _stage(spec: NetworkSpec, index: int, in_channels: int) -> nn.Sequential:
    width = spec.widths[index]
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    blocks["unit"] = UNITS[spec.unit](in_channels, width, spec.strides[index])
    for number in range(1, spec.modules[index] + 1):
        blocks[f"attention{number}"] = AttentionModule(
            width,
            spec.mask_depths[index],
            p=spec.p,
            t=spec.t,
            r=spec.r,
            post_units=spec.post_units,
            unit=spec.unit,
            activation=spec.activation,
            residual=spec.residual,
            pool=spec.pool,
            graph=spec.graph,
        )
    return nn.Sequential(blocks)


def _tail(spec: NetworkSpec) -> nn.Sequential:
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    channels, stride = spec.widths[-1], spec.tail_stride
    for number in range(1, spec.tail_units + 1):
        blocks[f"unit{number}"] = UNITS[spec.unit](channels, spec.tail_width, stride)
        channels, stride = spec.tail_width, 1
    return nn.Sequential(blocks)


class ResidualAttentionNetwork(nn.Module):
    """Residual attention network, images (N, in_chans, H, W) to logits (N, num_classes).

    H and W may be any sizes of at least ``spec.minimum_size``. ``num_classes=0`` leaves out the
    classifier, ``global_pool=""`` the average pooling, and ``drop_rate`` is the dropout between.

    Raises ValueError where an argument or an input's shape cannot work, naming it.
    """

    #: What timm knows of the network, such as its input's size, mean and deviation.
    pretrained_cfg: dict[str, Any]

    def __init__(
        self,
        spec: NetworkSpec,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        require_count("in_chans", 1, in_chans)
        require_probability("drop_rate", drop_rate)
        require_head(num_classes, global_pool)
        require_parameters("widths", attention_parameters(spec, in_chans, num_classes))
        self.spec = spec
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.minimum_size = spec.minimum_size

        self.stem = _make_stem(spec, in_chans)
        self.stem_pool = max_pool(spec.stem_pool, spec.pool) if spec.stem_pool else nn.Identity()
        reduction = spec.stem_stride
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": spec.stem_width, "reduction": reduction, "module": "stem"}
        ]
        reduction *= 2 if spec.stem_pool else 1

        strides, widths = spec.strides, spec.widths
        channels = (spec.stem_width, *widths)
        stages = [_stage(spec, index, channels[index]) for index in range(len(widths))]
        if spec.tail_units:
            stages.append(_tail(spec))
            strides, widths = (*strides, spec.tail_stride), (*widths, spec.tail_width)
        self.stages = nn.Sequential(*stages)
        for index, (stride, width) in enumerate(zip(strides, widths, strict=True)):
            reduction *= stride
            self.feature_info.append(
                {"num_chs": width, "reduction": reduction, "module": f"stages.{index}"}
            )

        self.num_features = self.head_hidden_size = widths[-1]
        # Units of the ResNeXt kind end in a normalised ReLU already.
        preact = spec.unit == "preact"
        self.norm = nn.BatchNorm2d(self.num_features) if preact else nn.Identity()
        self.act = nn.ReLU(inplace=True) if preact else nn.Identity()
        self.head = ClassifierHead(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate
        )
        self.apply(init_weights)

    def _check(self, x: Tensor) -> None:
        require_images(x, self.in_chans, self.minimum_size)

    def _run(self, stage: nn.Module, x: Features) -> Features:
        for block in stage.children():
            # An attention module sees to its own parts.
            whole = self.grad_checkpointing and not isinstance(block, AttentionModule)
            x = checkpointed(block, block, value_of(x)) if whole else chained(block, x)
        return x

    def _stem(self, x: Tensor) -> Tensor:
        stem: Any = self.stem
        plain = type(stem) is nn.Sequential and is_called_plainly(stem)
        if not plain or [*stem._modules] != ["conv", "norm", "act"]:  # or somebody put a layer in
            out: Tensor = stem(x)
            return out
        return norm_act(stem.norm, stem.act, stem.conv(x))

    def _open(self, x: Tensor) -> Tensor:
        return self.stem_pool(self._stem(x))

    def _close(self, x: Features) -> Tensor:
        if isinstance(x, Sum):
            return x.norm_act(self.norm, self.act)
        return norm_act(self.norm, self.act, x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Features (N, num_features, h, w) before the pooling, normalised, from (N, C, H, W)."""
        self._check(x)
        run = checkpointed if self.grad_checkpointing else stored
        features: Features = run(self.stem, self._open, x)
        for stage in self.stages:
            features = self._run(stage, features)
        return self._close(features)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (N, num_classes) of ``forward_features``' output, or (N, num_features) before."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features of the stem (before its pooling) and of each stage, as ``feature_info`` lists.

        ``indices``: the last n if an integer, all if None. ``norm`` normalises the last stage's.
        ``stop_early`` runs no stage after the last one asked for. Returns the intermediates alone,
        or behind ``forward_features``' output.
        """
        require_choice("output_fmt", ("NCHW",), output_fmt)
        self._check(x)
        take = self._take_indices(indices)
        x = self._stem(x)
        intermediates = [x] if 0 in take else []
        features: Features = self.stem_pool(x)
        stages = self.stages[: max(take)] if stop_early else self.stages
        final = len(self.feature_info) - 1
        for index, stage in enumerate(stages, start=1):
            features = self._run(stage, features)
            if index in take:
                closed = norm and index == final
                intermediates.append(self._close(features) if closed else value_of(features))
        if intermediates_only:
            return intermediates
        out = self._close(features) if len(stages) == final else value_of(features)
        return out, intermediates

    def _take_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self.feature_info)
        if indices is None:
            return list(range(count))
        if isinstance(indices, int):
            require(1 <= indices <= count, "indices", f"the last 1 to {count}", indices)
            return list(range(count - indices, count))
        known = len(indices) > 0 and all(-count <= index < count for index in indices)
        require(known, "indices", f"some of {-count} to {count - 1}", indices)
        return [index % count for index in indices]

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what ``forward_intermediates`` does not need for ``indices``; those, normalised."""
        take = self._take_indices(indices)
        last = max(take)
        shortened = last < len(self.stages)
        if prune_norm or shortened:
            self.norm = self.act = nn.Identity()
        self.stages = self.stages[:last]
        if shortened:
            # The classifier was sized for the last stage's features.
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return take

    def get_classifier(self) -> nn.Module:
        """The classifier: a linear layer, or an identity without classes."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a newly initialised one of ``num_classes``, 0 for none."""
        current = self.head.global_pool.pool_type
        require_head(num_classes, current if global_pool is None else global_pool)
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        self.head.apply(init_weights)

    def set_grad_checkpointing(self, enable: bool | str = True) -> None:
        """Compute activations again in the backward instead of storing them.

        True: the stem, units and attention modules' parts, from their inputs. "norms": what the
        units' normalisations give to convolutions, from what they normalise, which costs a pass
        over memory and no convolution. Gradients and running statistics are those of the network
        without checkpointing.
        """
        self.grad_checkpointing = set_recomputing(self, enable)
        for module in self.modules():
            if isinstance(module, AttentionModule):
                module.grad_checkpointing = self.grad_checkpointing

    def _trace_attention(self, x: Tensor) -> Iterator[tuple[str, AttentionFeatures]]:
        self._check(x)
        x = self._open(x)
        for index, stage in enumerate(self.stages):
            for name, block in stage.named_children():
                if isinstance(block, AttentionModule):
                    x, features = block.forward_attention(x)
                    yield f"stages.{index}.{name}", features
                else:
                    x = block(x)

    @torch.no_grad()
    def attention_masks(self, x: Tensor) -> dict[str, Tensor]:
        """The soft masks M (N, C, H', W') of images x (N, in_chans, H, W), by module name.

        Each is the M that the gate multiplies with, in [0, 1]; with ``activation="channel"`` in
        [-1, 1], as features divided by their norm keep their signs (equation 5). In module order,
        at each module's own size. Runs in evaluation mode and without gradients, and leaves every
        module's mode and running statistics as they were.
        """
        with evaluating(self):
            return {name: features.mask for name, features in self._trace_attention(x)}

    @torch.no_grad()
    def attention_features(self, x: Tensor) -> dict[str, AttentionFeatures]:
        """The trunk, mask and gated features of each module by its name, as ``attention_masks``."""
        with evaluating(self):
            return dict(self._trace_attention(x))
