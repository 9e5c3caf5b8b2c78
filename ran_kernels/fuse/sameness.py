"""Whether a module and its replacement do the same: looked at, watched, asked on many inputs."""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import reference
from ..backends import backend
from ..nn import CBAM
from .looking import description, look_at, tensors_of
from .readers import UnusualError, read
from .watching import operations_of, state_of, watched

#: (N, H, W) of the inputs asked with values, and of those asked without.
_SHAPES = ((2, 5, 4), (1, 1, 1), (3, 1, 7), (1, 9, 1), (5, 2, 2), (1, 17, 16), (9, 3, 3))
_LARGE_SHAPES = ((2, 5, 4), (64, 7, 7), (128, 224, 224), (1, 1024, 2049))
_SCALES = (1e-30, 1e-4, 10.0, 1e3, 1e6, 1e18, 1e100)
#: A module, or a half of one.
Half = Callable[[Tensor], Any]


def understood(module: nn.Module, alike: set[str]) -> CBAM:
    """The replacement of `module`. Raises UnusualError, with the reason, where it has none.

    `alike` has the descriptions of the modules that have been asked already, and gets this one's.
    """
    known = read(module)
    look_at(module)
    kept = {id(tensor) for tensor in tensors_of(known.fused).values()}
    for name, tensor in tensors_of(module).items():
        if id(tensor) not in kept:
            raise UnusualError(f"it has {name}, which CBAM has not")
    # Not fused.train(): a part may be frozen in evaluation mode while the rest trains.
    known.fused.training = module.training
    described = description(module)
    if described in alike:
        return known.fused
    try:
        # Whatever mode the caller is in, and whatever numbers a part draws.
        with (
            torch.random.fork_rng(devices=[]),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            backend("reference"),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            _require_same(module)
    except UnusualError:
        raise
    except Exception as error:
        raise UnusualError(f"it cannot be tried out: {line_of(error)}") from None
    alike.add(described)
    return known.fused


def _require_same(module: nn.Module) -> None:
    """Asks copies of `module` and of its replacement with random weights."""
    trial = _Trial(module)
    for mode in _MODES:
        mode(trial)
        trial.watch()
    for mode in _MODES:
        mode(trial)
        for x in _inputs(trial.channels, few=mode is _freeze):
            trial.ask("it", trial.original, trial.other, x)
    _train(trial, False)
    for what, half, other in trial.halves():
        for x in _extreme(trial.channels):
            trial.ask(what, half, other, x)
    _require_one_way(trial)


class _Trial:
    """A copy of a module, and the replacement made of another copy with the same weights."""

    def __init__(self, module: nn.Module) -> None:
        self.original = _blank(module)
        self.twin = copy.deepcopy(self.original)
        self.known = read(self.original)
        self.other = read(self.twin).fused
        self.channels = self.other.fc1.weight.shape[1]
        self._start = [buffer.clone() for buffer in self.original.buffers()]

    def halves(self) -> Iterator[tuple[str, Half, Half]]:
        """Name, original and replacement of either half."""
        yield "its channel attention", self.known.channel, _channel_half(self.other)
        yield "its spatial attention", self.known.spatial, _spatial_half(self.other)

    def watch(self) -> None:
        """Raises UnusualError unless the original's forward is a function and leaves no trace."""
        before = state_of(self.original)
        try:
            found = watched(self.original, _random(2, self.channels, 5, 4))
        except Exception as error:
            raise UnusualError(f"it does not run: {line_of(error)}") from None
        after = state_of(self.original)
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                raise UnusualError(f"its forward sets its attribute {name}")
        if found:
            raise UnusualError(found[0])

    def ask(self, what: str, run: Half, other: Half, x: Tensor) -> None:
        """Raises UnusualError unless both give the same for x, and its gradients if it has any."""
        for holder in (self.original, self.twin):
            for buffer, start in zip(holder.buffers(), self._start, strict=True):
                buffer.copy_(start)
        leaves = [x.detach().requires_grad_(x.requires_grad) for _ in range(2)]
        expected, got = _attempt(run, leaves[0]), _attempt(other, leaves[1])
        if expected is None and got is None:  # as batch normalisation of a single value
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
            ours = torch.autograd.grad(
                got, [leaves[1], *self.twin.parameters()], wave, allow_unused=True
            )
            theirs = torch.autograd.grad(
                expected, [leaves[0], *self.original.parameters()], wave, allow_unused=True
            )
            for a, b in zip(ours, theirs, strict=True):
                if (a is None) != (b is None) or (a is not None and not _close(a, b)):
                    raise UnusualError(f"{what} has other gradients than CBAM")
        pairs = zip(tensors_of(self.twin).items(), tensors_of(self.original).values(), strict=True)
        for (name, a), b in pairs:
            if not _close(a, b):
                raise UnusualError(f"{what} leaves another {name} than CBAM")


def _attempt(run: Half, x: Tensor) -> Any:
    try:
        return run(x)
    except Exception:
        return None


def _train(trial: _Trial, training: bool) -> None:
    for module in (trial.original, trial.twin, trial.other):
        module.train(training)


def _freeze(trial: _Trial) -> None:
    """The frozen norm that people train with."""
    _train(trial, True)
    for module in (trial.original, trial.twin, trial.other):
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()


_MODES: tuple[Callable[[_Trial], None], ...] = (
    lambda trial: _train(trial, True),
    lambda trial: _train(trial, False),
    _freeze,
)


def _require_one_way(trial: _Trial) -> None:
    """Raises UnusualError unless the same operations run whatever the input's size and kind."""
    channels = trial.channels
    single, bare = copy.deepcopy(trial.original).float(), copy.deepcopy(trial.original).to("meta")
    for part in bare.modules():
        if isinstance(part, nn.BatchNorm2d) and part.momentum is None:
            part.momentum = 0.1  # a mean over all batches asks how many there were
    x = _random(2, channels, 5, 4).float()
    kinds = [x, x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3), x[:, :, ::2]]
    for training in (True, False):
        for module in (single, bare):
            module.train(training)
        with torch.no_grad():
            ways = [operations_of(single, given) for given in kinds]
            large = [
                operations_of(
                    bare, x.new_empty(n, channels, h, w, dtype=torch.float64, device="meta")
                )
                for n, h, w in _LARGE_SHAPES
            ]
        ways.append(operations_of(single, x))
        if any(way != ways[0] for way in ways) or any(way != large[0] for way in large):
            raise UnusualError("its forward depends on the input's size or layout, or on gradients")
    with torch.autocast("cpu", torch.bfloat16):
        if operations_of(single, x) != ways[0]:
            raise UnusualError("its forward depends on autocast")
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        if operations_of(single.to(dtype), x.to(dtype)) != ways[0]:
            raise UnusualError(f"its forward depends on the input's dtype, {dtype}")


def _inputs(channels: int, *, few: bool) -> Iterator[Tensor]:
    """Inputs (N, C, H, W) in float64 of many sizes, values and layouts; gradients where wanted."""
    if few:
        yield _random(2, channels, 5, 4).requires_grad_()
        return
    yield from (_random(n, channels, h, w).requires_grad_() for n, h, w in _SHAPES)
    yield from _extreme(channels)
    x = _random(2, channels, 5, 4)
    yield (-x.abs() - 0.1).requires_grad_()
    yield x.contiguous(memory_format=torch.channels_last).requires_grad_()
    yield x.transpose(2, 3).requires_grad_()
    yield _random(2, channels, 5, 8)[..., 1::2]
    yield _random(1, channels, 4, 4).expand(3, -1, -1, -1)


def _extreme(channels: int) -> Iterator[Tensor]:
    """Inputs of values that are seldom met."""
    x = _random(2, channels, 5, 4)
    yield (x * 30).requires_grad_()
    yield from (x * scale for scale in _SCALES)
    yield x * 10 ** _random(2, channels, 5, 4).mul(3)
    yield from (torch.full_like(x, value) for value in (0.0, -7.5))
    for value in (torch.nan, torch.inf, -torch.inf):
        special = x.clone()
        special[1, channels // 2, 3, 1] = value
        yield special


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


def _random(*shape: int) -> Tensor:
    random = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=torch.float64, device="cpu", generator=random)


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding, which is relative to the largest finite value."""
    if a.shape != b.shape or a.dtype != b.dtype or torch.equal(a, b):
        return a.shape == b.shape and a.dtype == b.dtype
    if not b.is_floating_point():
        return False
    scale = torch.where(b.isfinite(), b, 0).abs().amax() if b.numel() else 0.0
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9 * float(scale), equal_nan=True)


def line_of(error: Exception) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
