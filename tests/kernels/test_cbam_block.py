"""ran_kernels.nn.CBAM on every backend against the authors' module in plain PyTorch."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers.cbam import CbamModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import ran_kernels
from ran_kernels.nn import CBAM

from ..watching import saved_by
from .cbam_cases import NATIVE_LAYOUTS, features
from .harness import LAYOUTS, Place, everywhere, kernels, relative_error

SHAPE = (2, 32, 5, 7)


class Official(nn.Module):
    """The authors' module, with this library's names for its parts."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // reduction)
        self.fc2 = nn.Linear(channels // reduction, channels)
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: Tensor, shortcut: Tensor | None = None, relu: bool = False) -> Tensor:
        average = F.avg_pool2d(x, x.shape[2:]).flatten(1)
        # The authors' max_pool2d takes the first maximum; so does this.
        maximum = x.flatten(2).max(2).values
        logits = sum(self.fc2(F.relu(self.fc1(pooled))) for pooled in (average, maximum))
        x = x * torch.sigmoid(logits)[:, :, None, None]
        maps = torch.cat([x.max(1, keepdim=True).values, x.mean(1, keepdim=True)], 1)
        x = x * torch.sigmoid(self.norm(self.conv(maps)))
        x = x if shortcut is None else x + shortcut
        return F.relu(x) if relu else x


def modules(
    device: str = "cpu", dtype: torch.dtype = torch.float32, training: bool = True
) -> tuple[CBAM, Official]:
    """Both with the same weights, the norm's among them: at its start, it hides what is before."""
    ours, theirs = CBAM(SHAPE[1]), Official(SHAPE[1])
    nn.init.uniform_(ours.norm.weight, 0.5, 1.5)
    nn.init.uniform_(ours.norm.bias, -0.5, 0.5)
    ours.norm.state_dict()["running_var"].uniform_(0.5, 1.5)
    theirs.load_state_dict(ours.state_dict())
    return ours.to(device, dtype).train(training), theirs.to(device, dtype).train(training)


def results(module: nn.Module, x: Tensor, shortcut: Tensor | None, relu: bool) -> list[Tensor]:
    """Output, gradients of the inputs and of the parameters, and the buffers afterwards."""
    inputs = [t.detach().requires_grad_() for t in (x, shortcut) if t is not None]
    out = module(*inputs, relu=relu)
    wave = torch.linspace(-2.0, 3.0, out.numel(), dtype=torch.float64).cos().reshape(out.shape)
    leaves = [*inputs, *module.parameters()]
    grads = torch.autograd.grad(out, leaves, wave.to(out))
    return [out.detach(), *grads, *(b.double() for b in module.buffers())]


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def check(ours: list[Tensor], theirs: list[Tensor], limit: float) -> None:
    assert len(ours) == len(theirs)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.shape == b.shape
        assert relative_error(a, b) <= limit, f"result {i}"


@everywhere
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
@pytest.mark.parametrize("with_shortcut", [True, False], ids=["shortcut", "alone"])
def test_equals_the_authors_module(
    place: Place, layout: str, training: bool, relu: bool, with_shortcut: bool
) -> None:
    for dtype, limit in ((torch.float64, 1e-11), (torch.float32, 2e-5)):
        ours, theirs = modules(place.device, dtype, training)
        x = features(SHAPE, dtype, place.device, layout)
        shortcut = features(SHAPE, dtype, place.device, layout, seed=1) if with_shortcut else None
        want = results(theirs, x, shortcut, relu)
        check(place.run(results, ours, x, shortcut, relu), want, limit)


@kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_is_as_exact_as_pytorch(place: Place, dtype: torch.dtype) -> None:
    ours, theirs = modules(place.device, dtype)
    x = features(SHAPE, dtype, place.device)
    exact = results(copy.deepcopy(theirs).double(), x.double(), x.double(), True)
    want = results(theirs, x, x, True)
    got = place.run(results, ours, x, x, True)
    theirs_off = [relative_error(b, c) for b, c in zip(want, exact, strict=True)]
    for a, c, off in zip(got, exact, theirs_off, strict=True):
        # A single number, of which PyTorch may happen to be right about, is a sum over the rest.
        allowed = off if c.numel() > 1 else max(theirs_off)
        assert relative_error(a, c) <= max(3 * allowed, torch.finfo(dtype).eps)


@everywhere
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_equals_timms_module(place: Place, training: bool) -> None:
    channels = 40  # 40 / 16 = 2.5 is rounded up
    theirs = CbamModule(channels).to(place.device).train(training)
    ours = CBAM(
        channels, rounding=True, mlp_bias=False, mean_first=True, norm_momentum=0.1, norm_weight=1.0
    ).to(place.device)
    ours.train(training)
    state = theirs.state_dict()
    renamed = {
        "fc1.weight": state["channel.fc1.weight"].flatten(1),
        "fc2.weight": state["channel.fc2.weight"].flatten(1),
        "conv.weight": state["spatial.conv.conv.weight"],
    }
    for name in ours.norm.state_dict():
        renamed[f"norm.{name}"] = state[f"spatial.conv.bn.{name}"]
    ours.load_state_dict(renamed)
    x = features((2, channels, 5, 7), device=place.device)

    def run(module: nn.Module) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        out = module(leaf)
        grads = torch.autograd.grad(out.square().sum(), [leaf, *module.parameters()])
        return [out.detach(), *grads, *(b.double() for b in module.buffers())]

    want = run(theirs)
    want[2:4] = [grad.flatten(1) for grad in want[2:4]]
    check(place.run(run, ours), want, 2e-5)


def test_defaults_are_the_authors() -> None:
    module = CBAM(64)
    assert not module.norm.weight.count_nonzero()
    assert module.norm.momentum == 0.01
    assert [tuple(p.shape) for p in module.parameters()] == [
        (4, 64), (4,), (64, 4), (64,), (1, 2, 7, 7), (1,), (1,)
    ]  # fmt: skip


@everywhere
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradcheck(place: Place, training: bool) -> None:
    shape = (2, 4, 2, 3)
    module = CBAM(4, reduction=2, kernel_size=3).to(place.device, torch.float64).train(training)
    nn.init.constant_(module.norm.weight, 0.7)
    x = features(shape, torch.float64, place.device).requires_grad_()
    shortcut = features(shape, torch.float64, place.device, seed=1).requires_grad_()

    def run(x: Tensor, shortcut: Tensor, *parameters: Tensor) -> Tensor:
        return module(x, shortcut, relu=True)

    # Small enough a step for maxima and ReLUs to stay what they are. Fast: single gradients are
    # compared with the authors' module in float64 above.
    args = (x, shortcut, *module.parameters())
    assert place.run(torch.autograd.gradcheck, run, args, eps=1e-7, atol=1e-5, fast_mode=True)


@kernels
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
@pytest.mark.parametrize(
    ("shape", "share"),
    [
        ((1, 256, 56, 56), 0.02),
        ((1, 512, 28, 28), 0.02),
        ((1, 1024, 14, 14), 0.02),
        # Mean, maximum and its position, a channel each: 3 / 49 of the smallest maps.
        ((1, 2048, 7, 7), 0.065),
    ],
    ids=str,
)
def test_keeps_x_and_two_percent_for_the_backward_pass(
    place: Place, shape: tuple[int, ...], share: float, relu: bool
) -> None:
    if place == Place("triton", "cpu") and shape[2] > 7:
        pytest.skip("too slow in the interpreter, and what is saved is no matter of the backend")
    module = CBAM(shape[1]).to(place.device)
    own = {p.data_ptr() for p in [*module.parameters(), *module.buffers()]}
    x = features(shape, device=place.device).requires_grad_()
    outs: list[Tensor] = []
    all_saved = saved_by(lambda: outs.append(place.run(module, x, x, relu)))
    saved = {t.data_ptr(): t for t in all_saved}
    for pointer in (x.data_ptr(), *([outs[0].data_ptr()] if relu else [])):
        del saved[pointer]
    kept = sum(t.nbytes for pointer, t in saved.items() if pointer not in own)
    assert kept <= share * x.nbytes


@kernels
def test_frozen_parts_get_no_gradient_and_the_others_theirs(place: Place) -> None:
    ours, theirs = modules(place.device)
    x = features(SHAPE, device=place.device)
    names = [name for name, _ in ours.named_parameters()]
    for kept in names:
        for module in (ours, theirs):
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(name == kept)
                parameter.grad = None
        theirs(x).square().sum().backward()
        place.run(ours, x).square().sum().backward()
        want = dict(theirs.named_parameters())
        for name, parameter in ours.named_parameters():
            assert (parameter.grad is not None) == (name == kept)
        check([gradient(ours.get_parameter(kept))], [gradient(want[kept])], 2e-5)


@kernels
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compile_fullgraph(place: Place, layout: str, training: bool) -> None:
    torch._dynamo.reset()
    ours, theirs = modules(place.device, training=training)
    x = features(SHAPE, device=place.device, layout=layout)
    want = results(theirs, x, x, True)
    backend = place.compiler if training and layout == "channels_last" else "aot_eager"
    compiled = torch.compile(ours, fullgraph=True, backend=backend)
    check(place.run(results, compiled, x, x, True), want, 2e-5)


@kernels
def test_the_node_is_compiled_and_only_its_operators_are_exported(place: Place) -> None:
    # Dynamo of torch 2.11 took torch.compile for an export, and left the node out.
    torch._dynamo.reset()
    ours, _ = modules(place.device, training=False)
    x = features(SHAPE, device=place.device)
    targets: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        targets.extend(str(node.target) for node in graph.graph.nodes if node.op != "placeholder")
        return graph

    place.run(torch.compile(ours, fullgraph=True, backend=backend), x)
    assert any("_apply" in target for target in targets), targets
    for strict in (False, True):
        program = place.run(torch.export.export, ours, (x,), strict=strict)
        names = {str(node.target) for node in program.graph.nodes}
        assert any(name.startswith("ran.cbam_gate") for name in names), names


@kernels
def test_export(place: Place) -> None:
    ours, theirs = modules(place.device, training=False)
    x = features(SHAPE, device=place.device)
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = {"x": {0: batch}, "shortcut": {0: batch}, "relu": None}
    args = (x, x, True)
    program = place.run(torch.export.export, ours, args, dynamic_shapes=shapes)
    other = features((5, *SHAPE[1:]), device=place.device)
    torch.testing.assert_close(program.module()(other, other, True), theirs(other, other, True))


@kernels
def test_autocast(place: Place) -> None:
    ours, theirs = modules(place.device)
    x = features(SHAPE, device=place.device)
    exact = results(theirs, x, x, True)
    with torch.autocast(place.device, torch.bfloat16):
        for a, b in ((x.bfloat16(), x.bfloat16()), (x.bfloat16(), x), (x, x)):
            got = place.run(results, copy.deepcopy(ours), a, b, True)
            assert got[0].dtype == torch.promote_types(a.dtype, b.dtype)
            assert [g.dtype for g in got[1:3]] == [a.dtype, b.dtype]
            assert all(g.dtype == torch.float32 for g in got[3:-3])
            # The norm's bias sees a sum over all of x, in which rounding adds up.
            check(got[:3] + got[-3:], exact[:3] + exact[-3:], 0.05)


@kernels
def test_autocast_holds_for_what_follows_in_a_compiled_network(place: Place) -> None:
    # Dynamo once left it off behind the block, and the next convolution had two dtypes.
    torch._dynamo.reset()
    ours, _ = modules(place.device)
    network = nn.Sequential(ours, nn.Conv2d(SHAPE[1], 4, 1, device=place.device))
    x = features(SHAPE, device=place.device)
    with torch.autocast(place.device, torch.bfloat16):
        want = place.run(copy.deepcopy(network), x)
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        got = place.run(compiled, x)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, want)
    got.sum().backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@kernels
def test_checkpoint_gives_the_same_gradients(place: Place) -> None:
    ours, _ = modules(place.device, training=False)
    x = features(SHAPE, device=place.device)
    again = copy.deepcopy(ours)
    want = place.run(results, ours, x, x, True)

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = again

        def forward(self, x: Tensor, shortcut: Tensor, relu: bool) -> Any:
            return checkpoint(self.inner, x, shortcut, relu, use_reentrant=False)

    assert all(map(torch.equal, want, place.run(results, Checkpointed(), x, x, True)))


@kernels
def test_distributed_data_parallel(place: Place, tmp_path: Any) -> None:
    distributed = torch.distributed
    ours, theirs = modules(place.device)
    x = features(SHAPE, device=place.device)
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(ours)
        place.run(parallel, x).square().sum().backward()
    finally:
        distributed.destroy_process_group()
    theirs(x).square().sum().backward()
    check([*map(gradient, ours.parameters())], [*map(gradient, theirs.parameters())], 2e-5)


@kernels
def test_replaced_and_hooked_parts_take_part(place: Place) -> None:
    ours, theirs = modules(place.device)
    x = features(SHAPE, device=place.device)
    calls = []
    for module in (ours, theirs):
        module.fc2.register_forward_hook(lambda *args: calls.append(args))
        module.add_module("norm", nn.Identity())
    check(place.run(results, ours, x, x, True), results(theirs, x, x, True), 2e-5)
    assert len(calls) == 4


@kernels
@pytest.mark.parametrize("momentum", [None, 0.3], ids=str)
def test_running_statistics_are_updated_once_a_step(place: Place, momentum: float | None) -> None:
    ours, theirs = modules(place.device)
    ours.norm.momentum = theirs.norm.momentum = momentum
    for seed in range(3):
        x = features(SHAPE, device=place.device, seed=seed)
        place.run(ours, x.requires_grad_()).sum().backward()
        theirs(x)
    assert ours.norm.num_batches_tracked == 3
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@kernels
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(place: Place, layout: str) -> None:
    ours, theirs = modules(place.device)
    x = features(SHAPE, device=place.device)
    want = results(theirs, x, x, True)
    check(place.run(results, ours, LAYOUTS[layout](x), LAYOUTS["sliced"](x), True), want, 2e-5)


def test_second_derivative_is_refused_with_the_way_out() -> None:
    ours, _ = modules()
    x = features(SHAPE).requires_grad_()
    with ran_kernels.backend("native"):
        (grad,) = torch.autograd.grad(ours(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"backend\('reference'\)"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CBAM(8), r"channels: expected at least reduction=16, got 8"),
        (lambda: CBAM(32, kernel_size=4), r"kernel_size: expected an odd number, got 4"),
        (lambda: CBAM(32)(torch.zeros(2, 16, 4, 4)),
         r"x: expected shape \(2, 32, 4, 4\) with 32 channels, got \(2, 16, 4, 4\)"),
        (lambda: CBAM(32)(torch.zeros(2, 32, 4)), r"x: expected \(N, C, H, W\), got"),
        (lambda: CBAM(32)(torch.zeros(2, 32, 4, 4), torch.zeros(2, 32, 4, 1)),
         r"shortcut: expected shape \(2, 32, 4, 4\) as x, got \(2, 32, 4, 1\)"),
        (lambda: CBAM(32)(torch.zeros(1, 32, 1, 1)), r"Expected more than 1 value per channel"),
    ],
    ids=["channels", "kernel", "x-channels", "x-dimensions", "shortcut", "single-value"],
)  # fmt: skip
def test_bad_arguments_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
