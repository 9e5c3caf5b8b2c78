"""Units whose 1×1 convolutions take norms in, against the same units without."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

import ran
import ran_kernels
from ran.models import modes
from ran.models.attention import AttentionModule, MaskHead
from ran.models.cbam_resnet import CbamBottleneck
from ran.models.modes import set_norm_conv
from ran.models.units import PreActUnit, ResNeXtUnit
from tests.watching import Calls

needs_interpreter = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1",
    reason="Triton runs CPU tensors in its interpreter, which is off where a GPU is found",
)


def _bottleneck(inplanes: int, planes: int, stride: int = 1) -> CbamBottleneck:
    down = None
    if stride != 1 or inplanes != 4 * planes:
        conv = nn.Conv2d(inplanes, 4 * planes, 1, stride, bias=False)
        down = nn.Sequential(conv, nn.BatchNorm2d(4 * planes))
    block = CbamBottleneck(inplanes, planes, stride, down, reduction=2)
    nn.init.ones_(block.cbam.norm.weight)
    return block


class _Mask(nn.Module):
    """A sum that the unit made opens the head."""

    def __init__(self) -> None:
        super().__init__()
        self.unit, self.head = PreActUnit(8, 8), MaskHead(8, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head.chain(self.unit.chain(x))  # type: ignore[return-value]


#: Units of 8 channels, and how many products the forward has.
UNITS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "preact": (lambda: PreActUnit(8, 8), 2),
    "preact, halved": (lambda: PreActUnit(8, 12, 2), 3),
    "two preact": (lambda: nn.Sequential(PreActUnit(8, 8), PreActUnit(8, 8)), 4),
    "resnext": (lambda: ResNeXtUnit(8, 64), 3),
    "mask": (_Mask, 4),
    "attention": (lambda: AttentionModule(8, 1), 14),
    "attention, naive": (lambda: AttentionModule(8, 0, p=0, t=1, residual=False), 8),
    "attention, of channels": (lambda: AttentionModule(8, 0, p=0, t=1, activation="channel"), 8),
    "cbam": (lambda: _bottleneck(8, 2), 2),
    "cbam, halved": (lambda: _bottleneck(8, 2, 2), 3),
}


def _made(name: str, norm_conv: bool) -> nn.Module:
    torch.manual_seed(0)
    unit = UNITS[name][0]().double()
    for module in unit.modules():
        if isinstance(module, nn.BatchNorm2d) and module.num_features > 1:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    set_norm_conv(unit, norm_conv)
    return unit


def _image(samples: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 8, 3, 4, generator=generator, dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def _trained(unit: nn.Module) -> tuple[list[Tensor], int]:
    """Result and gradients, statistics afterwards, and how many products the forward has."""
    x = _image()
    with ran_kernels.backend("triton"):
        with Calls() as calls:
            out = unit(x)
        grads = torch.autograd.grad(out.sin().sum(), [x, *unit.parameters()])
    products = calls.counts["ran::norm_relu_conv"]
    return [out.detach(), *grads, *(b.clone() for b in unit.buffers())], products


@needs_interpreter
@pytest.mark.parametrize("name", UNITS)
def test_as_without(name: str) -> None:
    for training in (True, False):
        got, products = _trained(_made(name, True).train(training))
        want, none = _trained(_made(name, False).train(training))
        assert (products, none) == (UNITS[name][1], 0)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@needs_interpreter
@pytest.mark.parametrize("name", ["preact, halved", "cbam, halved"])
def test_a_hook_on_any_layer_is_called(name: str) -> None:
    want, products = _trained(_made(name, True))
    shortcut = ("shortcut",) if name.startswith("preact") else ("downsample.0", "downsample.1")
    for layer in ("conv1", "bn1", "bn2", "bn3", "conv3", *shortcut):
        unit = _made(name, True)
        heard: list[Any] = []
        unit.get_submodule(layer).register_forward_hook(lambda *args, heard=heard: heard.append(1))
        got, fewer = _trained(unit)
        assert heard == [1]
        assert fewer <= products
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@needs_interpreter
def test_compiled_in_one_graph() -> None:
    torch._dynamo.reset()
    want, _ = _trained(_made("preact, halved", True))
    unit = _made("preact, halved", True)
    compiled = torch.compile(unit, fullgraph=True, backend="aot_eager")
    x = _image()
    with ran_kernels.backend("triton"):
        out = compiled(x)
        grads = torch.autograd.grad(out.sin().sum(), [x, *unit.parameters()])
    torch.testing.assert_close([out.detach(), *grads, *unit.buffers()], want)


#: Samples that the first of two processes has, of 5.
SHARE = 3
#: Those that both train, and of them with norms that can be synchronised on a CPU.
REPLICATED = ("preact, halved", "attention, naive", "resnext", "cbam, halved")
SYNCHRONISED = REPLICATED[:3]


def _mean_of_both(model: nn.Module) -> None:
    """What DDP does with gradients, which refuses SyncBatchNorm on a CPU."""
    for grad in (parameter.grad for parameter in model.parameters()):
        assert grad is not None
        distributed.all_reduce(grad)
        grad /= 2


def _steps(
    model: nn.Module, x: Tensor, scale: float, share: Callable[[nn.Module], None] = lambda _: None
) -> list[list[Tensor]]:
    """Result, gradients of x and of the parameters, and statistics, of two steps each; `share`
    changes the parameters' gradients."""
    found = []
    for _ in range(2):
        x = x.detach().requires_grad_()
        model.zero_grad()
        out = model(x)
        (scale * out.sin().sum()).backward()
        share(model)
        parameters = [p for p in model.parameters() if p.grad is not None]
        assert len(parameters) == len([*model.parameters()])
        grads = [x.grad / scale, *(p.grad.clone() for p in parameters)]  # type: ignore[operator, union-attr]
        found += [[out.detach(), *grads, *(b.clone() for b in model.buffers())]]
        with torch.no_grad():
            for parameter in parameters:
                parameter.sub_(0.1 * parameter.grad)  # type: ignore[operator]
    return found


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found: dict[Any, Any] = {}
    x = _image(5)
    share = x[:SHARE] if rank == 0 else x[SHARE:]
    for name in REPLICATED:
        with Calls() as calls, ran_kernels.backend("triton"):
            ours = nn.parallel.DistributedDataParallel(_made(name, True))
            found[name, "ours"] = _steps(ours, share, 1.0)
        assert calls.counts["ran::norm_relu_conv"] == 2 * UNITS[name][1]
        with ran_kernels.backend("reference"):
            plain = nn.parallel.DistributedDataParallel(_made(name, False))
            found[name, "plain"] = _steps(plain, share, 1.0)
        if name in SYNCHRONISED:
            unit = nn.SyncBatchNorm.convert_sync_batchnorm(_made(name, True))
            with Calls() as calls, ran_kernels.backend("triton"):
                found[name, "synchronised"] = _steps(unit, share, 1.0, _mean_of_both)
            assert calls.counts["ran::norm_relu_conv"] == 2 * UNITS[name][1]
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@needs_interpreter
def test_replicated_as_without_and_synchronised_as_one_process(tmp_path: Path) -> None:
    multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    close: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
    for name in REPLICATED:
        for found in (first, second):
            torch.testing.assert_close(found[name, "ours"], found[name, "plain"], **close)
        parameters = len([*_made(name, False).parameters()])
        for one, other in zip(first[name, "ours"], second[name, "ours"], strict=True):
            assert all(map(torch.equal, one[2 : 2 + parameters], other[2 : 2 + parameters]))
    for name in SYNCHRONISED:
        with ran_kernels.backend("reference"):
            # DDP gives the mean of both processes' gradients.
            whole = _steps(_made(name, False), _image(5), 0.5)
        steps = zip(first[name, "synchronised"], second[name, "synchronised"], strict=True)
        merged = [[*map(torch.cat, zip(a[:2], b[:2], strict=True)), *a[2:]] for a, b in steps]
        torch.testing.assert_close(merged, whole, **close)
        for one, other in zip(
            first[name, "synchronised"], second[name, "synchronised"], strict=True
        ):
            assert all(map(torch.equal, one[2:], other[2:]))


def test_the_option_and_what_is_recorded() -> None:
    plan = {"widths": (16, 24, 32), "tail_width": 32}
    for name, options in (("attention56_cifar", plan), ("cbam_resnet50", {"layers": (1, 1, 1, 1)})):
        for asked, found in ((None, False), (False, False), (True, True)):
            model = ran.create_model(name, norm_conv=asked, **options)
            units = [m for m in model.modules() if hasattr(type(m), "norm_conv")]
            assert len(units) > 3
            assert all(unit.norm_conv is found for unit in units)
            # It is no part of what a network is: others load its weights.
            origin: Any = model.origin
            assert origin.options == options
        with pytest.raises(ValueError, match="norm_conv: expected one of None, False, True, got 3"):
            ran.create_model(name, norm_conv=3)


def test_the_environment_says_what_holds_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, wanted in (("1", True), ("0", False), (None, False)):
        if value is None:
            monkeypatch.delenv("RAN_NORM_CONV")
        else:
            monkeypatch.setenv("RAN_NORM_CONV", value)
        assert modes.norm_conv_wanted() is wanted
    monkeypatch.setenv("RAN_NORM_CONV", "yes")
    with pytest.raises(ValueError, match="RAN_NORM_CONV: expected one of '0', '1', got 'yes'"):
        modes.norm_conv_wanted()
