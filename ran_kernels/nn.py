"""The operators as modules."""

from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from . import backends
from .attention_gate import attention_gate
from .batch_norm_cbam import batch_norm_cbam
from .cbam_block import Norm, Options, Perceptron, cbam_block
from .cbam_gate import cbam_gate
from .channel_pool import channel_pool
from .checks import promote, require_device, require_shape, require_tensor
from .norm_relu_conv import Measured
from .norms import (
    add_norm_act,
    add_norm_relu,
    add_norm_relu_conv,
    are_products,
    measured_convs,
    norm_act,
    norm_add_relu,
    norm_measured,
    norm_relu,
    norm_relu_conv,
    options_of,
    parted,
)
from .parts import are_plain, is_called_plainly, is_pointwise, keeps_size
from .spatial_pool import spatial_pool
from .upsample import upsample_add

__all__ = [
    "CBAM",
    "AttentionGate",
    "UpsampleAdd",
    "add_norm_act",
    "add_norm_relu",
    "add_norm_relu_conv",
    "are_products",
    "measured_convs",
    "norm_act",
    "norm_add_relu",
    "norm_cbam",
    "norm_measured",
    "norm_relu",
    "norm_relu_conv",
]

# As the package's own names are: torch.fx finds a call by the name that its caller knows.
for _operator in ("attention_gate", "cbam_gate", "channel_pool", "spatial_pool", "upsample_add"):
    torch.fx.wrap(_operator)


class AttentionGate(nn.Module):
    """`ran_kernels.attention_gate` of (logits, trunk) with fixed options."""

    def __init__(self, residual: bool = True, activation: str = "mixed") -> None:
        super().__init__()
        self.residual = residual
        self.activation = activation

    def forward(self, logits: Tensor, trunk: Tensor) -> Tensor:
        return attention_gate(logits, trunk, residual=self.residual, activation=self.activation)

    def extra_repr(self) -> str:
        return f"residual={self.residual}, activation={self.activation!r}"


class UpsampleAdd(nn.Module):
    """`ran_kernels.upsample_add` of (x, skip) with fixed options."""

    def __init__(self, align_corners: bool = True) -> None:
        super().__init__()
        self.align_corners = align_corners

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return upsample_add(x, skip, align_corners=self.align_corners)

    def extra_repr(self) -> str:
        return f"align_corners={self.align_corners}"


class CBAM(nn.Module):
    """Convolutional block attention: Woo et al., ECCV 2018 (arXiv 1807.06521).

    Channel attention, then spatial attention, and with `shortcut` and `relu` also the end of the
    residual block around it::

        channel logits = mlp(mean over H×W of x) + mlp(max over H×W of x)
        x1 = x * sigmoid(channel logits)
        spatial logits = norm(conv([max over C of x1, mean over C of x1]))
        x2 = x1 * sigmoid(spatial logits) (+ shortcut) (, ReLU)

    The defaults are the authors' module. timm's CbamModule is ``CBAM(channels, rounding=True,
    mlp_bias=False, mean_first=True, norm_momentum=0.1, norm_weight=1.0)``.

    Kernels run it as one autograd node that saves x and small maps for the backward pass: about
    4/C of x's size, and its own result with `relu`. It runs as the composition of the
    operators instead on the reference backend, in torch.export and torch.fx, and wherever the node
    would pass over something: where a part has been replaced by another kind of module, or has
    hooks of any kind, or holds tensors that are no plain ones, as quantised weights are.

    Args:
        channels: of x.
        reduction: the perceptron's hidden layer has channels / reduction units.
        kernel_size: of the spatial attention's convolution, odd.
        rounding: round channels / reduction to the nearest (at least 1), instead of down.
        mlp_bias: whether the perceptron's two layers have biases.
        mean_first: the convolution's input is [mean, max] instead of [max, mean].
        norm_momentum: of the spatial attention's batch normalisation.
        norm_weight: its scale at the start. With 0, spatial attention starts as the factor 1/2.
        mlp_conv: the perceptron's layers are 1×1 convolutions, as timm's, instead of linear ones.
            Weights of either shape load into both.

    Raises:
        ValueError: a size is not positive, or `kernel_size` is even.
    """

    #: Of modules that were pickled before there was a choice, too.
    mlp_conv = False

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        kernel_size: int = 7,
        *,
        rounding: bool = False,
        mlp_bias: bool = True,
        mean_first: bool = False,
        norm_momentum: float = 0.01,
        norm_weight: float = 0.0,
        mlp_conv: bool = False,
    ) -> None:
        super().__init__()
        hidden = max(1, (2 * channels + reduction) // (2 * reduction))
        if not rounding:
            hidden = channels // reduction
            if hidden < 1:
                raise ValueError(
                    f"channels: expected at least reduction={reduction}, got {channels}"
                )
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
        self.mean_first = mean_first
        self.mlp_conv = mlp_conv
        self.fc1 = self._mlp_layer(channels, hidden, mlp_bias)
        self.fc2 = self._mlp_layer(hidden, channels, mlp_bias)
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=norm_momentum)
        nn.init.constant_(self.norm.weight, norm_weight)

    def forward(self, x: Tensor, shortcut: Tensor | None = None, relu: bool = False) -> Tensor:
        """CBAM of x (N, C, H, W), plus `shortcut` (N, C, H, W), through a ReLU with `relu`."""
        if isinstance(x, torch.fx.Proxy):
            return self._composed(x, shortcut, relu)
        x, shortcut = self._checked(x, shortcut)
        backend, statistics = self._chosen(x, shortcut)
        if statistics is None:
            return self._composed(x, shortcut, relu)
        return cbam_block(x, shortcut, *self._node(backend, statistics, relu))

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What x (N, C, H, W) is multiplied by: (N, C, 1, 1) and (N, 1, H, W), in [0, 1]."""
        channel, spatial = self._logits(x)
        return channel.sigmoid()[:, :, None, None], spatial.sigmoid()

    def extra_repr(self) -> str:
        return f"mean_first={self.mean_first}" + (", mlp_conv=True" if self.mlp_conv else "")

    def _mlp_layer(self, into: int, out: int, bias: bool) -> nn.Linear | nn.Conv2d:
        return nn.Conv2d(into, out, 1, bias=bias) if self.mlp_conv else nn.Linear(into, out, bias)

    def _matrix(self, layer: nn.Linear | nn.Conv2d) -> Tensor:
        """The weight (out, in) of one of the perceptron's layers."""
        return layer.weight.flatten(1) if self.mlp_conv else layer.weight

    def _composed(self, x: Tensor, shortcut: Tensor | None, relu: bool) -> Tensor:
        channel, spatial = self._logits(x)
        return cbam_gate(x, channel, spatial, shortcut=shortcut, relu=relu)

    def _logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, maximum = channel_pool(x)
        channel = self._mlp(mean) + self._mlp(maximum)
        maps = spatial_pool(x, channel)
        return channel, self.norm(self.conv(maps.flip(1) if self.mean_first else maps))

    def _mlp(self, pooled: Tensor) -> Tensor:
        if self.mlp_conv:
            return self.fc2(F.relu(self.fc1(pooled[:, :, None, None]))).flatten(1)
        return self.fc2(F.relu(self.fc1(pooled)))

    def _checked(self, x: Tensor, shortcut: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Both in one dtype."""
        require_tensor("x", x)
        # A part that was put in later may not say its sizes.
        sizes = "in_channels" if self.mlp_conv else "in_features"
        channels = getattr(self.fc1, sizes, x.shape[1])
        require_shape("x", x, (x.shape[0], channels, *x.shape[2:]), f"with {channels} channels")
        if shortcut is None:
            return x, None
        require_tensor("shortcut", shortcut)
        require_shape("shortcut", shortcut, x.shape, "as x")
        require_device("shortcut", shortcut, "x", x)
        x, shortcut = promote(x, shortcut)
        return x, shortcut

    def _node(
        self, backend: str, statistics: tuple[Tensor, Tensor], relu: bool
    ) -> tuple[Perceptron, Tensor, Norm, Options]:
        """What `cbam_block` takes after its images, of what `_chosen` gives; a batch is counted."""
        fc1, fc2, conv, norm = self.fc1, self.fc2, self.conv, self.norm
        if norm.training and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        return (
            Perceptron(self._matrix(fc1), fc1.bias, self._matrix(fc2), fc2.bias),
            conv.weight,
            Norm(norm.weight, norm.bias, *statistics),
            Options(backend, relu, self.mean_first, norm.training, norm.momentum or 0.0, norm.eps),
        )

    def _chosen(
        self, x: Tensor, shortcut: Tensor | None
    ) -> tuple[str, tuple[Tensor, Tensor] | None]:
        """The node's backend, and as `_node_statistics`."""
        backend = backends.choose("cbam_gate", x)
        if backend == "reference" or backends.exporting():
            return backend, None
        return backend, self._node_statistics(x, shortcut)

    def _of_norm(
        self, norm: nn.Module, given: Tensor | Measured, shortcut: Tensor | None, relu: bool
    ) -> Tensor | None:
        """As `norm_cbam` with `recompute`; None, with nothing done, where the node cannot run."""
        x, known = parted(given)
        if isinstance(x, torch.fx.Proxy) or not is_called_plainly(self):
            return None
        image, shortcut = self._checked(x, shortcut)
        backend, statistics = self._chosen(x, shortcut)
        if image.dtype != x.dtype or statistics is None:
            return None
        options = options_of(norm, x)
        if options is None:
            return None
        block = self._node(backend, statistics, relu)
        return batch_norm_cbam(x, shortcut, **options, **known, block=block)

    def _node_statistics(self, x: Tensor, shortcut: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """The running mean and variance that the node works with, None where it cannot run.

        It runs where the parts are what they were built as, with nothing hung on them. A batch with
        a single value is left to BatchNorm2d, which refuses it in training.
        """
        layer = nn.Conv2d if self.mlp_conv else nn.Linear
        kinds = {"fc1": layer, "fc2": layer, "conv": nn.Conv2d, "norm": nn.BatchNorm2d}
        for name, kind in kinds.items():
            part = getattr(self, name)
            if type(part) is not kind or not is_called_plainly(part):
                return None
            plain = is_pointwise if name.startswith("fc") else keeps_size
            if isinstance(part, nn.Conv2d) and not plain(part):
                return None
        fc1, fc2, conv, norm = self.fc1, self.fc2, self.conv, self.norm
        mean, var = norm.running_mean, norm.running_var
        if mean is None or var is None or norm.momentum is None or conv.bias is not None:
            return None
        if norm.training and not norm.track_running_stats:  # it has statistics, and leaves them
            return None
        layers = (fc1.weight, fc1.bias, fc2.weight, fc2.bias, conv.weight, norm.weight, norm.bias)
        if not are_plain(x, shortcut, *layers, mean, var, norm.num_batches_tracked):
            return None
        return (mean, var) if x.shape[0] * x.shape[2] * x.shape[3] > 1 else None

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *rest: Any, **options: Any
    ) -> None:
        # A perceptron's weights are (R, C) in linear layers and (R, C, 1, 1) in convolutions.
        for layer in ("fc1", "fc2"):
            own, key = getattr(self, layer), f"{prefix}{layer}.weight"
            given = state_dict.get(key)
            if type(own) in (nn.Linear, nn.Conv2d) and isinstance(given, Tensor):
                both = sorted((given.shape, own.weight.shape), key=len)
                if (*both[0], 1, 1) == tuple(both[1]):
                    state_dict[key] = given.reshape(own.weight.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest, **options)


def norm_cbam(
    norm: nn.Module,
    x: Tensor | Measured,
    cbam: nn.Module,
    shortcut: Tensor | None = None,
    relu: bool = False,
    *,
    recompute: bool,
) -> Tensor:
    """``cbam(norm(x), shortcut, relu)``.

    Args:
        x, shortcut: (N, C, H, W).
        recompute: as one node that keeps x alone and computes ``norm(x)`` again in the backward,
            where `norm_relu` would take its operator and `cbam` is a `CBAM` as it was built,
            without hooks of any kind. Otherwise, and elsewhere, the two one by one.
    """
    if recompute and type(cbam) is CBAM:
        out = cbam._of_norm(norm, x, shortcut, relu)
        if out is not None:
            return out
    result: Tensor = cbam(norm_measured(norm, x), shortcut, relu=relu)
    return result
