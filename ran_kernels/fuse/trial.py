"""A copy of a module beside its replacement with the same weights, asked one input at a time."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import reference
from ..nn import CBAM
from .looking import state_of, tensors_of
from .readers import UnusualError, read
from .watching import watched

#: A module, or a half of one.
Half = Callable[[Tensor], Any]


class Trial:
    """A copy of a module, and the replacement made of another copy with the same weights."""

    def __init__(self, module: nn.Module) -> None:
        self.original = _blank(module)
        self.twin = copy.deepcopy(self.original)
        self.known = read(self.original)
        self.other = read(self.twin).fused
        self.channels = self.other.fc1.weight.shape[1]
        self._tensors = [tensors_of(module) for module in (self.original, self.twin)]
        self._leaves = [list(module.parameters()) for module in (self.original, self.twin)]
        self._buffers = [list(module.buffers()) for module in (self.original, self.twin)]
        self._start = [buffer.clone() for buffer in self._buffers[0]]

    def halves(self) -> Iterator[tuple[str, Half, Half]]:
        """Name, original and replacement of either half."""
        yield "its channel attention", self.known.channel, _channel_half(self.other)
        yield "its spatial attention", self.known.spatial, _spatial_half(self.other)

    def watch(self) -> None:
        """Raises UnusualError unless the original's forward is a function and leaves no trace."""
        before = state_of(self.original)
        try:
            found = watched(self.original, normal(2, self.channels, 5, 4))
        except Exception as error:
            raise UnusualError(f"it does not run: {line_of(error)}") from None
        after = state_of(self.original)
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                raise UnusualError(f"its forward sets {name}")
        if found:
            raise UnusualError(found[0])

    def ask(self, what: str, run: Half, other: Half, x: Tensor) -> None:
        """Raises UnusualError unless both give the same for x, and its gradients if it has any."""
        for buffers in self._buffers:
            for buffer, start in zip(buffers, self._start, strict=True):
                buffer.copy_(start)
        leaves = [x.detach().requires_grad_(x.requires_grad) for _ in range(2)]
        expected, got = attempt(run, leaves[0]), attempt(other, leaves[1])
        # Neither takes a single value in training, and it is no other result where a view() refuses
        # an odd layout.
        if expected is None and (got is None or not is_dense(x)):
            return
        if not (type(expected) is Tensor and isinstance(got, Tensor) and _close(got, expected)):
            shape = tuple(x.shape)
            raise UnusualError(f"{what} computes something else than CBAM for some {shape}")
        for layout in (torch.contiguous_format, torch.channels_last):
            kept = x.is_contiguous(memory_format=layout)
            if kept and not expected.is_contiguous(memory_format=layout):
                raise UnusualError(f"{what} gives its result in another memory layout")
        if x.requires_grad and not expected.requires_grad:
            raise UnusualError(f"{what} has other gradients than CBAM")
        if x.requires_grad:
            wave = torch.linspace(-1e3, 2e3, x.numel(), dtype=x.dtype).cos().mul_(1e3)
            wave = wave.view(x.shape)
            theirs, ours = (
                torch.autograd.grad(out, [leaf, *parameters], wave, allow_unused=True)
                for out, leaf, parameters in zip((expected, got), leaves, self._leaves, strict=True)
            )
            for a, b in zip(ours, theirs, strict=True):
                if (a is None) != (b is None) or (a is not None and not _close(a, b)):
                    raise UnusualError(f"{what} has other gradients than CBAM")
        for name, b in self._tensors[0].items():
            if not _close(self._tensors[1][name], b):
                raise UnusualError(f"{what} leaves another {name} than CBAM")


def is_dense(x: Tensor) -> bool:
    """Whether x is contiguous or channels_last, as features are."""
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


def attempt(run: Half, x: Tensor) -> Any:
    """What ``run(x)`` gives, None where it raises."""
    try:
        return run(x)
    except Exception:
        return None


def train(trial: Trial, training: bool) -> None:
    for module in (trial.original, trial.twin, trial.other):
        module.train(training)


def freeze(trial: Trial) -> None:
    """The frozen norm that people train with."""
    train(trial, True)
    for module in (trial.original, trial.twin, trial.other):
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()


MODES: tuple[Callable[[Trial], None], ...] = (
    lambda trial: train(trial, True),
    lambda trial: train(trial, False),
    freeze,
)


def _blank(module: nn.Module) -> nn.Module:
    """A copy on the CPU, in float64, with random weights that let every part shape the result."""
    random = torch.Generator().manual_seed(0)
    memo: dict[int, Any] = {}
    try:
        for parameter in module.parameters():
            shape = parameter.shape
            made = torch.randn(shape, dtype=torch.float64, device="cpu", generator=random)
            scale = 1.5 * max(1, shape[1:].numel()) ** -0.5
            memo[id(parameter)] = nn.Parameter(made * scale)
        for buffer in module.buffers():
            dtype = torch.float64 if buffer.is_floating_point() else buffer.dtype
            memo[id(buffer)] = torch.zeros(buffer.shape, dtype=dtype, device="cpu")
        copied = copy.deepcopy(module, memo)
    except Exception as error:
        raise UnusualError(f"it cannot be copied: {line_of(error)}") from None
    # Neither a statistic of 0 nor one of 1 would show where it is used.
    for norm in copied.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
            norm.running_var.fill_(0.5)
            norm.running_mean.fill_(0.25)  # type: ignore[union-attr]
    return copied


def _channel_half(fused: CBAM) -> Half:
    def run(x: Tensor) -> Tensor:
        mean, maximum = reference.channel_pool(x)
        return reference.cbam_gate(x, fused._mlp(mean) + fused._mlp(maximum))

    return run


def _spatial_half(fused: CBAM) -> Half:
    def run(x: Tensor) -> Tensor:
        maps = reference.spatial_pool(x)
        logits = fused.norm(fused.conv(maps.flip(1) if fused.mean_first else maps))
        return reference.cbam_gate(x, None, logits)

    return run


def normal(*shape: int) -> Tensor:
    """Normal numbers in float64, the same each time."""
    random = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=torch.float64, device="cpu", generator=random)


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding, which is relative to the largest finite value."""
    if a.shape != b.shape or a.dtype != b.dtype or torch.equal(a, b):
        return a.shape == b.shape and a.dtype == b.dtype
    if not b.is_floating_point():
        return False
    if (a - b).abs().amax() <= 1e-9 * b.abs().amax():  # not with NaN or infinity in them
        return bool(b.isfinite().all())
    scale = torch.where(b.isfinite(), b, 0).abs().amax() if b.numel() else 0.0
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9 * float(scale), equal_nan=True)


def line_of(error: Exception) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
