"""Whether a module and its replacement do the same: looked at, watched, asked on many inputs."""

import copy
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..backends import backend
from ..nn import CBAM
from .looking import description, look_at, tensors_of
from .readers import UnusualError, read
from .trial import MODES, Trial, attempt, freeze, is_dense, line_of, normal, train
from .watching import operations_of

#: (N, H, W) of the inputs asked with values, and of those asked without.
_SHAPES = ((2, 5, 4), (1, 1, 1), (3, 1, 7), (1, 9, 1), (5, 2, 2), (1, 17, 16), (9, 3, 3))
_LARGE_SHAPES = ((2, 5, 4), (128, 7, 224), (1, 1024, 2049))
_SCALES = (1e-30, 1e-4, 10.0, 1e3, 1e6, 1e18, 1e100)


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
    trial = Trial(module)
    for mode in MODES:
        mode(trial)
        trial.watch()
    for mode in MODES:
        mode(trial)
        for x in _inputs(trial.channels, few=mode is freeze):
            trial.ask("it", trial.original, trial.other, x)
    train(trial, False)
    for what, half, other in trial.halves():
        for x in _extreme(trial.channels):
            trial.ask(what, half, other, x)
    _require_one_way(trial)


def _require_one_way(trial: Trial) -> None:
    """Raises UnusualError unless the same operations run whatever the input's size and kind."""
    channels = trial.channels
    single, bare = copy.deepcopy(trial.original).float(), copy.deepcopy(trial.original).to("meta")
    for part in (*single.modules(), *bare.modules()):
        if isinstance(part, nn.BatchNorm2d) and part.momentum is None:
            part.momentum = 0.1  # a mean over all batches asks how many there were
    x = normal(2, channels, 5, 4).float()
    kinds = [x, x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3), x[:, :, ::2]]
    for training in (True, False):
        for module in (single, bare):
            module.train(training)
        with torch.no_grad():
            ways = [attempt(lambda x: operations_of(single, x), given) for given in kinds]
            large = [
                operations_of(
                    bare, x.new_empty(n, channels, h, w, dtype=torch.float64, device="meta")
                )
                for n, h, w in _LARGE_SHAPES
            ]
        ways.append(operations_of(single, x))
        refused = [given for given, way in zip(kinds, ways, strict=False) if way is None]
        if any(map(is_dense, refused)):
            raise UnusualError("it does not run in float32")
        ways = [way for way in ways if way is not None]
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
        yield normal(2, channels, 5, 4).requires_grad_()
        return
    for index, (n, h, w) in enumerate(_SHAPES):
        yield normal(n, channels, h, w).requires_grad_(index < 3)
    yield from _extreme(channels)
    x = normal(2, channels, 5, 4)
    yield (-x.abs() - 0.1).requires_grad_()
    yield x.contiguous(memory_format=torch.channels_last).requires_grad_()
    yield x.transpose(2, 3).requires_grad_()
    yield normal(2, channels, 5, 8)[..., 1::2]
    yield normal(1, channels, 4, 4).expand(3, -1, -1, -1)


def _extreme(channels: int) -> Iterator[Tensor]:
    """Inputs of values that are seldom met."""
    x = normal(2, channels, 5, 4)
    yield (x * 30).requires_grad_()
    yield from (x * scale for scale in _SCALES)
    yield x * 10 ** normal(2, channels, 5, 4).mul(3)
    yield from (torch.full_like(x, value) for value in (0.0, -7.5))
    for value in (torch.nan, torch.inf, -torch.inf):
        special = x.clone()
        special[1, channels // 2, 3, 1] = value
        yield special
