"""The plans that deployed networks keep: the operators of one shape, without the modules."""

import torch
from torch import Tensor, nn

import ran
import ran_kernels
from bench.compare import peak_memory
from ran.deployed_layers import Conv
from ran.deployed_plan import MOST_PLANS

from .deployed import NETWORKS, exact, images, shaped
from .helpers import relative


def test_a_plan_is_made_for_a_shape_and_a_backend_and_done_without_the_modules() -> None:
    model = shaped(NETWORKS["authors"]())
    deployed = ran.deploy(model)
    for size in (40, 48, 40):
        x = images(2, size)
        assert relative(deployed(x).double(), exact(model, x)) < 1e-5
    assert len(deployed._plans._plans) == 2
    called: list[nn.Module] = []
    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: called.append(module)
    )
    try:
        deployed(images(2, 48))
    finally:
        handle.remove()
    assert not any(isinstance(module, Conv) for module in called)
    with ran_kernels.backend("reference"), torch.profiler.profile() as profile:
        deployed(images(2, 48))
    assert not any(event.key.startswith("ran::") for event in profile.key_averages())
    for size in range(33, 40):
        x = images(1, size)
        assert relative(deployed(x).double(), exact(model, x)) < 1e-5
    assert len(deployed._plans._plans) == MOST_PLANS


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
    with torch.autocast("cpu", torch.bfloat16):
        low = deployed(x)
    assert low.dtype == torch.bfloat16  # of the classifier, as PyTorch's autocast has it
    assert deployed(x).dtype == torch.float32
    assert torch.equal(deployed(x), deployed(x))


def test_a_plan_lets_go_of_what_nothing_needs() -> None:
    deployed = ran.deploy(shaped(NETWORKS["authors"]()))
    x = images(4, 64).to(memory_format=torch.channels_last)
    deployed(x)
    by_plan = peak_memory(lambda: deployed(x), "cpu")
    by_modules = peak_memory(lambda: deployed.network(x), "cpu")
    assert by_plan <= by_modules
