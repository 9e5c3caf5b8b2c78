"""What the kernel benchmarks run: operators, their references, shapes, and what they must move."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ran_kernels
from ran_kernels import reference
from ran_kernels.nn import CBAM

# Attention-92's three stages and the four of CBAM-ResNet-50, at 224×224.
ATTENTION_STAGES = ((256, 56, 56), (512, 28, 28), (1024, 14, 14))
CBAM_STAGES = (*ATTENTION_STAGES, (2048, 7, 7))
NORM_STAGES = ((64, 112, 112), *CBAM_STAGES)


@dataclass(frozen=True)
class Case:
    """An operator, as it is called and in plain PyTorch.

    `inputs(big)` makes the arguments around the big tensor (N, C, H, W). `forward` and `backward`
    are the floors of the design: how many times the big tensor's bytes must move at least.
    """

    ours: Callable[..., Any]
    reference: Callable[..., Any]
    inputs: Callable[[Tensor], list[Any]]
    stages: tuple[tuple[int, int, int], ...]
    forward: float
    backward: float | None = None
    #: Elements that move besides, by the number of channels.
    weights: Callable[[int], int] = lambda channels: 0


def _small(big: Tensor, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=big.dtype, device=big.device)


def _half_size(big: Tensor) -> Tensor:
    n, c, h, w = big.shape
    layout = (
        torch.channels_last
        if big.is_contiguous(memory_format=torch.channels_last)
        else torch.contiguous_format
    )
    return _small(big, n, c, h // 2, w // 2).to(memory_format=layout)


def _channel_logits(big: Tensor) -> Tensor:
    return _small(big, *big.shape[:2])


def _spatial_logits(big: Tensor) -> Tensor:
    return _small(big, big.shape[0], 1, *big.shape[2:])


def _affine(big: Tensor) -> list[Tensor]:
    """A scale and a shift per channel, in big's dtype: ours widens them, the reference does not."""
    return [_small(big, big.shape[1]) for _ in range(2)]


def _norm(name: str, images: int, forward: float, backward: float) -> Case:
    """A batch normalisation in training; plain PyTorch's ReLU works in place, as networks' does."""

    def ours(*tensors: Tensor) -> Any:
        return getattr(ran_kernels, name)(
            *tensors[:images], None, None, *tensors[images:], training=True
        )

    def plain(*tensors: Tensor) -> Any:
        x, *others = tensors[:images]
        weight, bias = tensors[images:]
        if name == "add_batch_norm_relu":
            x = x + others[0]
        out = F.batch_norm(x, None, None, weight, bias, training=True)
        if name == "batch_norm_add_relu":
            out = out + others[0]
        out = out if name == "batch_norm" else F.relu(out, inplace=True)
        return (x, out) if name == "add_batch_norm_relu" else out

    return Case(
        ours,
        plain,
        lambda big: [big, torch.randn_like(big)][:images] + _affine(big),
        NORM_STAGES,
        forward=forward,
        backward=backward,
    )


def _bottleneck(wide: bool) -> Case:
    """A bottleneck's 1×1 convolution with the norm before it, in training: of C to C/4 channels, or
    from a quarter as many to C, with the skip added; and the statistics of the norm before it."""

    def ours(x: Tensor, weight: Tensor, bias: Tensor, matrix: Tensor, *skip: Tensor) -> Tensor:
        convs = [ran_kernels.Convolution(matrix[:, :, None, None])]
        _, (found,) = ran_kernels.norm_relu_conv(
            x,
            None,
            None,
            weight,
            bias,
            convs=convs,
            addend=skip[0] if skip else None,
            training=True,
        )
        return found.value

    def plain(x: Tensor, weight: Tensor, bias: Tensor, matrix: Tensor, *skip: Tensor) -> Tensor:
        x = F.relu(F.batch_norm(x, None, None, weight, bias, training=True), inplace=True)
        out = F.conv2d(x, matrix[:, :, None, None])
        return out + skip[0] if skip else out

    def inputs(big: Tensor) -> list[Any]:
        channels = big.shape[1]
        x = _quarter(big) if wide else big
        matrix = _small(big, *((channels, channels // 4) if wide else (channels // 4, channels)))
        return [x, *_affine(x), matrix / x.shape[1] ** 0.5, *([big] if wide else [])]

    # Statistics and the product read x, the product writes y and reads the skip. Backward, `reduce`
    # and the weight's gradient read both; then the wide one writes and reads what the ReLU lets
    # through, and the narrow one multiplies again.
    return Case(
        ours,
        plain,
        inputs,
        CBAM_STAGES,
        forward=2 / 4 + 2 if wide else 2 + 1 / 4,
        backward=2 * (1 + 1 / 4) + 4 / 4 if wide else 3 * (1 + 1 / 4) + 1,
        weights=lambda channels: channels**2 // 4,
    )


def _quarter(big: Tensor) -> Tensor:
    """An image of a quarter of big's channels."""
    n, c, h, w = big.shape
    last = big.is_contiguous(memory_format=torch.channels_last)
    made = _small(big, n, c // 4, h, w)
    return made.to(memory_format=torch.channels_last if last else torch.contiguous_format)


def _matrix(big: Tensor) -> Tensor:
    """A 1×1 convolution's weights, C to C channels, whose outputs are of the size of its inputs."""
    channels = big.shape[1]
    return _small(big, channels, channels) / channels**0.5


class _Block:
    """A CBAM block: ours fused, or the same parameters through the reference's operators."""

    def __init__(self, fused: bool) -> None:
        self.fused = fused
        self.modules: dict[tuple[Any, ...], CBAM] = {}

    def __call__(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        module = self.module(x)
        if self.fused:
            return module(x, shortcut, relu=shortcut is not None)
        return composed_cbam(module, x, shortcut)

    def module(self, x: Tensor) -> CBAM:
        key = (x.shape[1], x.dtype, x.device)
        if key not in self.modules:
            torch.manual_seed(0)
            module = CBAM(x.shape[1])
            nn.init.ones_(module.norm.weight)  # its own start, 0, would make the gate a constant
            # Rounded to bfloat16, so that every dtype has exactly the same parameters.
            self.modules[key] = module.bfloat16().to(x.device, x.dtype)
        return self.modules[key]


def composed_cbam(module: CBAM, x: Tensor, shortcut: Tensor | None) -> Tensor:
    """The official module's forward in plain PyTorch, with `module`'s parameters."""
    pooled = (x.mean((2, 3)), x.amax((2, 3)))
    mean, maximum = (module.fc2(torch.relu(module.fc1(values))) for values in pooled)
    channel_logits = mean + maximum
    x = x * torch.sigmoid(channel_logits)[:, :, None, None]
    maps = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
    x = x * torch.sigmoid(module.norm(module.conv(maps)))
    return x if shortcut is None else torch.relu(x + shortcut)


#: The most important first: a run may be cut.
CASES: dict[str, Case] = {
    "attention_gate": Case(
        ran_kernels.attention_gate,
        reference.attention_gate,
        lambda big: [torch.randn_like(big), big],
        ATTENTION_STAGES,
        forward=3,
        backward=5,
    ),
    "CBAM": Case(
        _Block(fused=True),
        _Block(fused=False),
        lambda big: [big],
        CBAM_STAGES,
        forward=4,
        backward=7,
    ),
    "CBAM+shortcut+ReLU": Case(
        _Block(fused=True),
        _Block(fused=False),
        lambda big: [big, torch.randn_like(big)],
        CBAM_STAGES,
        forward=5,
        backward=9,
    ),
    "batch_norm_relu": _norm("batch_norm_relu", 1, forward=3, backward=5),
    "add_batch_norm_relu": _norm("add_batch_norm_relu", 2, forward=5, backward=6),
    "batch_norm_add_relu": _norm("batch_norm_add_relu", 2, forward=4, backward=7),
    "norm_relu_conv[narrow]": _bottleneck(wide=False),
    "norm_relu_conv[wide]": _bottleneck(wide=True),
    "batch_norm": _norm("batch_norm", 1, forward=3, backward=5),
    "attention_gate[channel]": Case(
        lambda a, b: ran_kernels.attention_gate(a, b, activation="channel"),
        lambda a, b: reference.attention_gate(a, b, activation="channel"),
        lambda big: [torch.randn_like(big), big],
        ATTENTION_STAGES,
        forward=3,
        backward=5,
    ),
    "attention_gate[spatial]": Case(
        lambda a, b: ran_kernels.attention_gate(a, b, activation="spatial"),
        lambda a, b: reference.attention_gate(a, b, activation="spatial"),
        lambda big: [torch.randn_like(big), big],
        ATTENTION_STAGES,
        forward=3,
        backward=5,
    ),
    "conv_gate": Case(
        lambda x, weight, trunk: ran_kernels.conv_gate(x, weight, None, trunk),
        lambda x, weight, trunk: reference.conv_gate(x, weight, None, trunk),
        lambda big: [torch.randn_like(big), _matrix(big), big],
        ATTENTION_STAGES,
        forward=3,
        weights=lambda channels: channels**2,
    ),
    "upsample_add": Case(
        ran_kernels.upsample_add,
        reference.upsample_add,
        lambda big: [_half_size(big), big],
        ATTENTION_STAGES,
        forward=2.25,
        backward=1.25,
    ),
    "upsample": Case(
        lambda x, like: ran_kernels.upsample(x, tuple(like.shape[2:])),
        lambda x, like: reference.upsample(x, tuple(like.shape[2:])),
        lambda big: [_half_size(big), big.detach()],
        ATTENTION_STAGES,
        forward=1.25,
        backward=1.25,
    ),
    "add_affine_relu": Case(
        ran_kernels.add_affine_relu,
        reference.add_affine_relu,
        lambda big: [torch.randn_like(big), big, *_affine(big)],
        CBAM_STAGES,
        forward=4,
    ),
    "affine_relu": Case(
        ran_kernels.affine_relu,
        reference.affine_relu,
        lambda big: [big, *_affine(big)],
        CBAM_STAGES,
        forward=2,
    ),
    "channel_pool": Case(
        ran_kernels.channel_pool, reference.channel_pool, lambda big: [big], CBAM_STAGES, forward=1
    ),
    "spatial_pool": Case(
        ran_kernels.spatial_pool,
        reference.spatial_pool,
        lambda big: [big, _channel_logits(big)],
        CBAM_STAGES,
        forward=1,
    ),
    "cbam_gate": Case(
        ran_kernels.cbam_gate,
        reference.cbam_gate,
        lambda big: [big, _channel_logits(big), _spatial_logits(big)],
        CBAM_STAGES,
        forward=2,
    ),
}
