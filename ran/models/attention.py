"""The attention module and its soft mask branch: Wang et al., CVPR 2017, section 3."""

from typing import Any, NamedTuple

from torch import Tensor, nn

import ran_kernels
from ran_kernels.nn import measured_convs, norm_relu_conv
from ran_kernels.parts import are_called_plainly

from ..checks import require_choice, require_count
from .modes import NORM_CONV, checkpointed
from .sums import Features, Sum, can_be_products, chained, opened, opened_products, value_of
from .units import max_pool, unit_sequence

#: What the soft mask branch adds to an interpolation: see :class:`SoftMaskBranch`.
GRAPHS = ("authors", "additive")
#: How the mask follows from its logits: see :func:`ran_kernels.attention_gate`.
ACTIVATIONS = ("mixed", "channel", "spatial")


class AttentionFeatures(NamedTuple):
    """What one attention module computed, each (N, C, H, W)."""

    trunk: Tensor
    """T, the trunk branch's output: the features before the mask."""
    mask: Tensor
    """M, the soft mask."""
    gated: Tensor
    """(1 + M) · T, or M · T without attention residual learning: the features after the mask."""


class MaskHead(nn.Module):
    """Two 1×1 convolutions that give the mask's logits, (N, C, H, W) to the same shape.

    After pre-activation units the features come unnormalised, so the head normalises them first
    (``norm_first``); after post-activation units they are normalised already.
    """

    #: As in `units.PreActUnit`.
    recompute_norms = False
    norm_conv = NORM_CONV

    def __init__(self, channels: int, *, norm_first: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels) if norm_first else None
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return value_of(self.chain(x))

    def gate(self, x: Features, trunk: Tensor, *, residual: bool) -> Features:
        """`ran_kernels.attention_gate` of the logits and `trunk` (N, C, H, W), measured, inside the
        product that makes the logits."""
        recompute = self.recompute_norms
        _, (first,) = opened_products(self.bn1, x, self.conv1, recompute=recompute)
        beside: dict[str, Any] = {"trunk": trunk, "residual": residual}
        _, (gated,) = measured_convs(self.bn2, first, self.conv2, **beside, recompute=recompute)
        return Sum.made(gated)

    def chain(self, x: Features) -> Features:
        """``forward``, of a sum that may be open."""
        recompute = self.recompute_norms
        if self.norm_conv and can_be_products(x):
            _, (first,) = opened_products(self.bn1, x, self.conv1, recompute=recompute)
            _, (logits,) = measured_convs(
                self.bn2, first, self.conv2, recompute=recompute, measure=False
            )
            return logits.value
        if self.bn1 is None:
            y = self.conv1(value_of(x))
        else:
            (y,) = opened(self.bn1, x, self.conv1, recompute=recompute)
        (y,) = norm_relu_conv(self.bn2, y, self.conv2, recompute=recompute)
        return y


class SoftMaskBranch(nn.Module):
    """Bottom-up top-down branch that gives a mask's logits: section 3.2 and figure 2.

    ``depth`` is the number of max-poolings on the way down, each followed by ``r`` units. The
    deepest level has ``r`` more, and the way up interpolates, adds the skip unit of that level and
    runs ``r`` units. Depth 0 neither pools nor interpolates: 2r units, then the head.

    ``graph="authors"`` interpolates to a size and adds the skip unit alone. ``graph="additive"``
    also adds the tensor that gives that size: the level itself beside its skip unit, and the trunk
    to the last interpolation. The two have the same parameters and different outputs.

    Raises ValueError for a value that is none of these.
    """

    def __init__(
        self, channels: int, depth: int, *, r: int, unit: str, pool: str, graph: str
    ) -> None:
        super().__init__()
        require_choice("graph", GRAPHS, graph)
        require_count("depth", 0, depth)
        require_count("r", 1, r)
        self.depth = depth
        self.additive = graph == "additive"
        self.pool = max_pool(3, pool)
        self.down = nn.ModuleList(unit_sequence(unit, channels, r) for _ in range(depth))
        self.bottom = unit_sequence(unit, channels, r if depth else 2 * r)
        self.skip = nn.ModuleList(unit_sequence(unit, channels, 1) for _ in range(depth - 1))
        self.up = nn.ModuleList(unit_sequence(unit, channels, r) for _ in range(depth - 1))
        self.head = MaskHead(channels, norm_first=unit == "preact")

    def forward(self, x: Tensor, trunk: Tensor) -> Tensor:
        """Logits (N, C, H, W) of the mask for ``trunk`` (N, C, H, W), from x of the same shape."""
        return value_of(chained(self.head, self.before_head(x, trunk)))

    def before_head(self, x: Tensor, trunk: Tensor) -> Features:
        """What the head is given."""
        skips: list[Tensor] = []
        features: Features = x
        for level, down in enumerate(self.down):
            features = chained(down, self.pool(value_of(features)))
            if level < self.depth - 1:
                # Before the next pooling, which needs the sum that this one's first unit makes.
                skip = value_of(chained(self.skip[level], features))
                skips.append(skip + value_of(features) if self.additive else skip)
        features = chained(self.bottom, features)
        for skip, up in zip(reversed(skips), reversed(self.up), strict=True):
            features = chained(up, ran_kernels.upsample_add(value_of(features), skip))
        if self.depth:
            x = value_of(features)
            if self.additive:
                features = ran_kernels.upsample_add(x, trunk)
            else:
                features = ran_kernels.upsample(x, (trunk.shape[2], trunk.shape[3]))
        return features


class AttentionModule(nn.Module):
    """Attention module, (N, C, H, W) to the same shape: section 3 and figure 2.

    ``p`` units, then a trunk of ``t`` units beside a soft mask branch of the same input, the gate
    (equation 3 with ``residual``, equation 1 without), and ``post_units`` (p if None) after it.

    ``mask_depth``, ``r``, ``pool`` and ``graph`` are those of :class:`SoftMaskBranch`;
    ``activation`` is that of :func:`ran_kernels.attention_gate`; ``unit`` is "preact" or "resnext".
    Raises ValueError for a value that is none of these.
    """

    #: Whether each part is computed again in the backward instead of stored.
    grad_checkpointing = False

    def __init__(
        self,
        channels: int,
        mask_depth: int,
        *,
        p: int = 1,
        t: int = 2,
        r: int = 1,
        post_units: int | None = None,
        unit: str = "preact",
        activation: str = "mixed",
        residual: bool = True,
        pool: str = "caffe",
        graph: str = "authors",
    ) -> None:
        super().__init__()
        require_choice("activation", ACTIVATIONS, activation)
        after = p if post_units is None else post_units
        for name, least, value in (("p", 0, p), ("t", 1, t), ("post_units", 0, after)):
            require_count(name, least, value)
        self.activation = activation
        self.residual = residual
        self.pre = unit_sequence(unit, channels, p)
        self.trunk = unit_sequence(unit, channels, t)
        self.mask = SoftMaskBranch(channels, mask_depth, r=r, unit=unit, pool=pool, graph=graph)
        self.post = unit_sequence(unit, channels, after)

    def _gate(self, logits: Tensor, trunk: Tensor) -> Tensor:
        return ran_kernels.attention_gate(
            logits, trunk, residual=self.residual, activation=self.activation
        )

    def _close(self, logits: Tensor, trunk: Tensor) -> Tensor:
        return value_of(chained(self.post, self._gate(logits, trunk)))

    def forward(self, x: Tensor) -> Tensor:
        if not self.grad_checkpointing:
            return value_of(self.chain(x))

        def units(part: nn.Sequential, x: Tensor) -> Tensor:
            return checkpointed(part, lambda x: value_of(chained(part, x)), x)

        # By parts, as one module of the first stage holds half of a network's activations.
        x = units(self.pre, x)
        trunk = units(self.trunk, x)
        logits = checkpointed(self.mask, self.mask, x, trunk)
        return checkpointed(self.post, self._close, logits, trunk)

    def chain(self, x: Features) -> Features:
        """``forward``, with sums left open at both ends."""
        if self.grad_checkpointing:
            return self.forward(value_of(x))
        x = chained(self.pre, x)
        trunk = value_of(chained(self.trunk, x))
        if self._gates_in_product(trunk):
            features = self.mask.before_head(value_of(x), trunk)
            gated = self.mask.head.gate(features, trunk, residual=self.residual)
            return chained(self.post, gated)
        logits = self.mask(value_of(x), trunk)
        return chained(self.post, self._gate(logits, trunk))

    def _gates_in_product(self, trunk: Tensor) -> bool:
        """Whether the mask's last convolution may make the gate, as nobody is to see its logits."""
        mask, head = self.mask, getattr(self.mask, "head", None)
        return (
            self.activation == "mixed"
            and type(mask) is SoftMaskBranch
            and type(head) is MaskHead
            and are_called_plainly((mask, head))
            and head.norm_conv
            and can_be_products(trunk)
        )

    def forward_attention(self, x: Tensor) -> tuple[Tensor, AttentionFeatures]:
        """``forward``'s output beside the trunk, the mask and the gated features it came from."""
        x = self.pre(x)
        trunk = self.trunk(x)
        logits = self.mask(x, trunk)
        gated = self._gate(logits, trunk)
        mask = ran_kernels.attention_mask(logits, self.activation)
        return self.post(gated), AttentionFeatures(trunk, mask, gated)
