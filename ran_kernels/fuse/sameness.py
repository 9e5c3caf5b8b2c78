"""Whether a module and its replacement do the same: looked at, watched, asked on many inputs."""

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import reference
from ..backends import backend
from ..nn import CBAM
from ..parts import has_call_hooks, has_global_hooks, is_called_plainly
from .readers import UnusualError, read
from .watching import mark, operations_of, state_of, watched

#: What a class may define without being another kind of module.
_USUAL = {"__init__", "__module__", "__doc__", "__annotations__", "forward", "extra_repr"}
_OTHER_HOOKS = [
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
]
_COPYING = {"__getattribute__", "__deepcopy__", "__copy__", "__reduce__", "__reduce_ex__"}
#: (N, H, W) of the inputs asked with values, and of those asked without.
_SHAPES = ((2, 5, 4), (1, 1, 1), (3, 1, 7), (1, 9, 1), (5, 2, 2), (1, 17, 16), (9, 3, 3))
_LARGE_SHAPES = ((2, 5, 4), (64, 7, 7), (128, 224, 224), (1, 1024, 2049))
_SCALES = (1e-30, 1e-4, 10.0, 1e3, 1e6, 1e18, 1e100)
_HalvesOf = Callable[[CBAM], dict[str, Callable[[Tensor], Tensor]]]


def understood(module: nn.Module, alike: set[str]) -> CBAM:
    """The replacement of `module`. Raises UnusualError, with the reason, where it has none.

    `alike` has the descriptions of the modules that have been asked already, and gets this one's.
    """
    _look_at(module)
    known = read(module)
    kept = {id(tensor) for tensor in _tensors(known.fused).values()}
    for name, tensor in _tensors(module).items():
        if id(tensor) not in kept:
            raise UnusualError(f"it has {name}, which CBAM has not")
    # Not fused.train(): a part may be frozen in evaluation mode while the rest trains.
    known.fused.training = module.training
    description = _description(module)
    if description in alike:
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
        raise UnusualError(f"it cannot be tried out: {_line(error)}") from None
    alike.add(description)
    return known.fused


def _description(module: nn.Module) -> str:
    """Equal for modules that differ in their tensors' values alone."""
    parts = [
        (
            name,
            id(type(part)),
            [(key, mark(value)) for key, value in vars(part).items() if not key.startswith("_")],
        )
        for name, part in module.named_modules()
    ]
    tensors = [(name, tensor.shape) for name, tensor in _tensors(module).items()]
    return repr((parts, tensors))


def _look_at(module: nn.Module) -> None:
    """Raises UnusualError for what shows without running anything."""
    if has_global_hooks():
        raise UnusualError("hooks for all modules are registered")
    for name, part in module.named_modules():
        where = name or "it"
        if has_call_hooks(part) or any(getattr(part, hooks) for hooks in _OTHER_HOOKS):
            raise UnusualError(f"{where} has hooks")
        if not is_called_plainly(part):
            raise UnusualError(f"{where} has been compiled or given another forward")
        for attribute, value in vars(part).items():
            if isinstance(value, Tensor):
                raise UnusualError(f"{where} keeps a tensor in its attribute {attribute}")
        for kind in type(part).__mro__:
            if not kind.__module__.startswith("torch.") and kind is not object:
                other = ((vars(nn.Module).keys() | _COPYING) - _USUAL) & vars(kind).keys()
                for method in sorted(other - {"__dict__", "__weakref__"}):
                    raise UnusualError(f"{where} has a {method} of its own")
    parameters = [*inspect.signature(module.forward).parameters.values()]
    if len(parameters) != 1 or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        raise UnusualError("its forward takes more than the features")


def _require_same(module: nn.Module) -> None:
    """Asks copies of `module` and of its replacement with random weights."""
    original = _blank(module)
    twin = copy.deepcopy(original)
    known, twin_known = read(original), read(twin)
    halves: list[tuple[str, Callable[[Tensor], Any], Callable[[Tensor], Tensor]]] = [
        ("its channel attention", known.channel, _channel_half(twin_known.fused)),
        ("its spatial attention", known.spatial, _spatial_half(twin_known.fused)),
    ]
    channels = _channels(known.fused)
    x = _random(2, channels, 5, 4)
    for mode in _modes(original):
        mode(original, known.fused)
        before = state_of(original)
        try:
            found = watched(original, x.clone())
        except Exception as error:
            raise UnusualError(f"it does not run: {_line(error)}") from None
        if found:
            raise UnusualError(found[0])
        after = state_of(original)
        for name in before.keys() | after.keys():
            if before.get(name) != after.get(name):
                raise UnusualError(f"its forward sets its attribute {name}")
    import time

    t = time.time()
    twin.load_state_dict(original.state_dict())
    for mode in _modes(original):
        mode(original, known.fused)
        mode(twin, twin_known.fused)
        for given in _inputs(channels):
            _require_equal("it", original, twin_known.fused, given, original, twin)
        for what, run, other in halves:
            for given in _extreme(channels):
                _require_equal(what, run, other, given, original, twin)
    _require_one_way(original, known.fused)
    print("way", time.time() - t)


def _require_equal(
    what: str,
    run: Callable[[Tensor], Any],
    other: Callable[[Tensor], Tensor],
    x: Tensor,
    original: nn.Module,
    twin: nn.Module,
) -> None:
    differs = UnusualError(
        f"{what} computes something else than CBAM for an input of shape {tuple(x.shape)}"
    )
    leaves = [x.detach().requires_grad_(x.requires_grad) for _ in range(2)]
    outs: list[Any] = []
    for call, leaf in zip((run, other), leaves, strict=True):
        try:
            outs.append(call(leaf))
        except Exception:  # as batch normalisation of a single value
            outs.append(None)
    expected, got = outs
    if expected is None and got is None:
        return
    if not (type(expected) is Tensor and isinstance(got, Tensor) and _close(got, expected)):
        raise differs
    for layout in (torch.contiguous_format, torch.channels_last):
        if x.is_contiguous(memory_format=layout) != expected.is_contiguous(memory_format=layout):
            continue
        if got.is_contiguous(memory_format=layout) != expected.is_contiguous(memory_format=layout):
            raise UnusualError(f"{what} gives its result in another memory layout")
    if x.requires_grad:
        wave = torch.linspace(-1e3, 2e3, x.numel(), dtype=x.dtype).cos().mul_(1e3).view(x.shape)
        found = []
        for out, leaf, holder in zip(outs, leaves, (original, twin), strict=True):
            asked = [leaf, *holder.parameters()]
            found.append(torch.autograd.grad(out, asked, wave, allow_unused=True))
        for a, b in zip(*found, strict=True):
            if (a is None) != (b is None) or (a is not None and not _close(b, a)):
                raise UnusualError(f"{what} has other gradients than CBAM")
    tensors = zip(_tensors(original).values(), _tensors(twin).values(), strict=True)
    if not all(_close(a, b) for a, b in tensors):
        raise UnusualError(f"{what} leaves other buffers than CBAM")


def _require_one_way(original: nn.Module, fused: CBAM) -> None:
    """Raises UnusualError unless the same operations run whatever the input's size and kind."""
    channels = _channels(fused)
    single, bare = copy.deepcopy(original).float(), copy.deepcopy(original).to("meta")
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


def _inputs(channels: int) -> Iterator[Tensor]:
    """Inputs (N, C, H, W) in float64 of many sizes, values and layouts; gradients where wanted."""
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


def _modes(module: nn.Module) -> Iterator[Callable[[nn.Module, CBAM], Any]]:
    """Ways to put a copy and its replacement into training, evaluation, and the norm frozen."""
    yield lambda copied, fused: (copied.train(), fused.train())
    yield lambda copied, fused: (copied.eval(), fused.eval())

    def freeze(copied: nn.Module, fused: CBAM) -> None:
        copied.train()
        fused.train()
        for part in (*copied.modules(), fused.norm):
            if isinstance(part, nn.BatchNorm2d):
                part.eval()

    yield freeze


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
        raise UnusualError(f"it cannot be copied: {_line(error)}") from None
    # Neither a statistic of 0 nor one of 1 would show where it is used.
    for norm in copied.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
            norm.running_var.fill_(0.5)
            norm.running_mean.fill_(0.25)  # type: ignore[union-attr]
    return copied


def _channel_half(fused: CBAM) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        mean, maximum = reference.channel_pool(x)
        return reference.cbam_gate(x, fused._mlp(mean) + fused._mlp(maximum))

    return run


def _spatial_half(fused: CBAM) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        maps = reference.spatial_pool(x)
        logits = fused.norm(fused.conv(maps.flip(1) if fused.mean_first else maps))
        return reference.cbam_gate(x, None, logits)

    return run


def _channels(fused: CBAM) -> int:
    return fused.fc1.weight.shape[1]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _random(*shape: int) -> Tensor:
    random = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=torch.float64, device="cpu", generator=random)


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding, which is relative to the largest finite value."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not b.is_floating_point():
        return torch.equal(a, b)
    scale = torch.where(b.isfinite(), b, 0).abs().amax() if b.numel() else 0.0
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9 * float(scale), equal_nan=True)


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
