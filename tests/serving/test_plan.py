"""The plans that deployed networks keep: the operators of one shape, without the modules."""

import gc
import linecache
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ran
import ran_kernels
from bench.compare import peak_memory
from ran.serving.deploy import Deployed
from ran.serving.layers import Conv
from ran.serving.plan import MOST_SHAPES, modules_of
from tests.models.helpers import relative

from .deployed import NETWORKS, exact, images, shaped


def plans(deployed: Deployed) -> int:
    """How many plans it keeps."""
    return len(deployed._plans._kept.of(modules_of(deployed.network)))


def test_a_plan_is_made_for_a_shape_and_a_backend_and_done_without_the_modules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = shaped(NETWORKS["authors"]())
    deployed = ran.deploy(model)
    for size in (40, 48, 40):
        x = images(2, size)
        assert relative(deployed(x).double(), exact(model, x)) < 1e-5
    assert plans(deployed) == 2
    with monkeypatch.context() as patch:
        patch.setattr(Conv, "forward", None)  # a plan calls no module
        deployed(images(2, 48))
    with ran_kernels.backend("reference"), torch.profiler.profile() as profile:
        deployed(images(2, 48))
    assert not any(event.key.startswith("ran::") for event in profile.key_averages())
    for size in range(33, 40):
        x = images(1, size)
        assert relative(deployed(x).double(), exact(model, x)) < 1e-5
    assert plans(deployed) == MOST_SHAPES


def test_no_plan_where_somebody_looks_on() -> None:
    model, x = shaped(NETWORKS["CBAM bottleneck"]()), images()
    deployed = ran.deploy(model, example=x)
    seen: list[Tensor] = []
    layer = next(m for m in deployed.modules() if isinstance(m, Conv))
    handle = layer.register_forward_hook(lambda *_: seen.append(_[2]))
    deployed(x)
    assert len(seen) == 1
    handle.remove()
    deployed(x)
    assert len(seen) == 1
    for register in (
        torch.nn.modules.module.register_module_forward_hook,
        torch.nn.modules.module.register_module_forward_pre_hook,
    ):
        handle = register(lambda module, *_: seen.append(x) if module is layer else None)
        deployed(x)
        handle.remove()
    assert len(seen) == 3
    forward = layer.forward

    def watched(*arguments: Any, **options: Any) -> Tensor:
        seen.append(x)
        return forward(*arguments, **options)

    layer.__dict__["forward"] = watched
    deployed(x)
    assert len(seen) == 4
    del layer.forward
    deployed(x)
    assert len(seen) == 4
    with torch.autocast("cpu", torch.bfloat16):
        low = deployed(x)
    assert low.dtype == torch.bfloat16  # of the classifier, as PyTorch's autocast has it
    assert deployed(x).dtype == torch.float32
    assert torch.equal(deployed(x), deployed(x))


def first_conv(deployed: Deployed) -> Conv:
    return next(module for module in deployed.modules() if isinstance(module, Conv))


def through_data(conv: Conv) -> None:
    conv.weight.data.mul_(3)


def through_numpy(conv: Conv) -> None:
    conv.weight.numpy()[:] *= 3


def other_memory(conv: Conv) -> None:
    conv.weight.data = conv.weight * 3


@pytest.mark.parametrize(
    ("write", "seen"), [(other_memory, True), (through_data, False), (through_numpy, False)]
)
def test_writes_that_pytorch_does_not_count(write: Callable[[Conv], None], seen: bool) -> None:
    model, x = shaped(NETWORKS["authors"]()), images()
    deployed = ran.deploy(model, example=x)
    old = deployed(x)
    write(first_conv(deployed))
    if not seen:  # nothing tells, which is what forget_plans is for
        deployed.forget_plans()
    fresh = ran.deploy(model)
    first_conv(fresh).weight.mul_(3)
    assert not torch.equal(deployed(x), old)
    assert torch.equal(deployed(x), fresh(x))
    assert plans(deployed) == 1
    other = images(1, 60)
    assert torch.equal(deployed(other), fresh(other))


def test_tensors_of_inference_mode_keep_no_plan() -> None:
    model, x = shaped(NETWORKS["authors"]()), images()
    with torch.inference_mode():
        deployed = ran.deploy(model, example=x)
        deployed(x)
        assert plans(deployed) == 0
        first_conv(deployed).weight.mul_(3)
        fresh = ran.deploy(model)
        first_conv(fresh).weight.mul_(3)
        assert torch.equal(deployed(x), fresh(x))
    counted = ran.deploy(model, example=x)
    with torch.inference_mode():
        replaced = first_conv(counted).weight * 3
    first_conv(counted).weight.data = replaced
    assert relative(counted(x), fresh(x)) < 1e-5
    assert plans(counted) == 0


def kept_sources() -> int:
    """Sources of compiled code that Python's and torch.fx's caches hold."""
    return len(linecache.cache) + len(torch.fx.graph_module._loader.eval_cache)


def test_plans_that_are_dropped_leave_nothing_behind() -> None:
    deployed = ran.deploy(shaped(NETWORKS["CBAM basic"]()))
    x, weight = images(1, 33), first_conv(deployed).weight
    dropped = []
    deployed(x)
    before = kept_sources()
    for _ in range(3):
        weight.mul_(1)
        deployed(x)
        (plan,) = deployed._plans._kept.of(modules_of(deployed.network)).values()
        dropped.append(weakref.ref(plan))
        del plan
    assert kept_sources() == before
    gc.collect()
    assert [ref() is None for ref in dropped] == [True, True, False]


@pytest.mark.parametrize("way", ["load", "load of a parent", "in place", "another module"])
def test_a_plan_ends_with_the_weights_it_was_made_for(way: str) -> None:
    first, second = (shaped(NETWORKS["authors"]()) for _ in range(2))
    x = images()
    deployed, other = ran.deploy(first, example=x), ran.deploy(second)
    deployed(x)
    want = exact(second, x)
    if way == "load":
        deployed.load_state_dict(other.state_dict())
    elif way == "load of a parent":
        parents = nn.Sequential(deployed), nn.Sequential(other)
        parents[0].load_state_dict(parents[1].state_dict())
    elif way == "in place":
        for mine, theirs in zip(deployed.buffers(), other.buffers(), strict=True):
            mine.copy_(theirs)
        for head, theirs in zip(deployed.parameters(), other.parameters(), strict=True):
            head.data.copy_(theirs)
    else:
        deployed.network.head = nn.Identity()
        assert deployed(x).shape[1] != want.shape[1]
        return
    assert relative(deployed(x).double(), want) < 1e-5


def test_other_weights_for_one_call() -> None:
    first, second = (shaped(NETWORKS["authors"]()) for _ in range(2))
    x = images()
    for planned in (False, True):
        deployed, other = ran.deploy(first), ran.deploy(second)
        if planned:
            deployed(x)
        state = {**dict(other.named_buffers()), **dict(other.named_parameters())}
        got = torch.func.functional_call(deployed, state, x)
        assert relative(got.double(), exact(second, x)) < 1e-5
        assert relative(deployed(x).double(), exact(first, x)) < 1e-5


def test_transforms_leave_no_plan_behind() -> None:
    model = shaped(NETWORKS["authors"]())
    deployed = ran.deploy(model, dtype=torch.float64)
    x = images().double()
    torch.func.jvp(deployed, (x,), (torch.ones_like(x),))
    assert plans(deployed) == 0
    for other in (x, images().double()):
        assert relative(deployed(other), exact(model, other)) < 1e-12


def test_another_dtype_after_the_fact() -> None:
    model, x = shaped(NETWORKS["authors"]()), images()
    deployed = ran.deploy(model, example=x).double()
    assert deployed(x).dtype == torch.float64
    assert relative(deployed(x), exact(model, x)) < 1e-5


def test_threads_do_not_wait_for_each_other_where_no_plan_is_kept() -> None:
    deployed = ran.deploy(shaped(NETWORKS["authors"]()))
    for size in range(33, 33 + MOST_SHAPES):
        deployed(images(1, size))
    together = threading.Barrier(2, timeout=30)
    network = deployed.network.forward

    def forward(x: Tensor) -> Tensor:
        together.wait()  # raises where only one thread comes here
        return network(x)

    deployed.network.forward = forward
    results: list[Tensor] = []
    threads = [
        threading.Thread(target=lambda: results.append(deployed(images(1, 60)))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2


def test_a_plan_lets_go_of_what_nothing_needs() -> None:
    deployed = ran.deploy(shaped(NETWORKS["authors"]()))
    x = images(4, 64).to(memory_format=torch.channels_last)
    first = peak_memory(lambda: deployed(x), "cpu")
    by_plan = peak_memory(lambda: deployed(x), "cpu")
    by_modules = peak_memory(lambda: deployed.network(x), "cpu")
    assert by_plan <= by_modules
    # The first call packs weights too, and keeps those, but not its activations.
    weights = sum(buffer.nbytes for buffer in deployed.buffers())
    assert first <= by_modules + 1.5 * weights
