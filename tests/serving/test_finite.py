"""NaN and infinity in a deployed network: the fused ReLUs would make 0 of NaN."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

import ran
from ran.errors import UserError

from .deployed import NETWORKS, exact, images, shaped


@pytest.mark.parametrize("name", ["authors", "resnext", "features", "CBAM basic"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_pixel_without_a_number_shows_in_its_image_alone(name: str, value: float) -> None:
    model, x = shaped(NETWORKS[name]()), images(3)
    deployed = ran.deploy(model, example=x)
    want = deployed(x)
    x[1, 0, 5, 7] = value
    assert exact(model, x)[1].isnan().any()
    for again in range(2):  # with and without a plan
        got = deployed(x)
        assert got[1].isnan().all(), again
        assert torch.equal(got[0], want[0]), again
        assert torch.equal(got[2], want[2]), again
    handle = deployed.network.register_forward_hook(lambda *_: None)  # by the modules
    assert deployed(x)[1].isnan().all()
    handle.remove()


def tensors(model: nn.Module) -> list[str]:
    return [name for name, value in model.state_dict().items() if value.is_floating_point()]


@pytest.mark.parametrize("name", ["authors", "CBAM bottleneck"])
def test_weights_without_numbers_are_not_deployed(name: str) -> None:
    model = shaped(NETWORKS[name]())
    state = model.state_dict()
    for tensor in tensors(model)[:: len(state) // 5]:
        kept = state[tensor].view(-1)[0].item()
        state[tensor].view(-1)[0] = math.nan
        with pytest.raises(UserError) as caught:
            ran.deploy(model)
        state[tensor].view(-1)[0] = kept
        count = state[tensor].numel()
        assert str(caught.value) == (
            f"model: expected finite numbers, {tensor} has NaN or infinity in 1 of {count:,}"
        )


def test_nor_what_has_none_in_the_dtype_or_folded() -> None:
    model: Any = shaped(NETWORKS["authors"]())
    with torch.no_grad():
        model.head.fc.weight[0, 0] = 1e6
    ran.deploy(model)
    with pytest.raises(UserError, match=r"model, folded, in float16: .*head.fc.weight has NaN or"):
        ran.deploy(model, dtype=torch.float16)
    model.stem.norm.running_var[0] = -1
    with pytest.raises(UserError, match="stem: expected statistics that normalise"):
        ran.deploy(model)
    with pytest.raises(UserError, match="is on the meta device"):
        ran.deploy(model.to("meta"))


def test_nor_loaded_into_a_deployed_network() -> None:
    deployed = ran.deploy(shaped(NETWORKS["authors"]()))
    x = images()
    want = deployed(x)
    state = copy.deepcopy(deployed.state_dict())
    name = next(iter(state))
    state[name].view(-1)[0] = math.inf
    with pytest.raises(UserError, match=f"state_dict: expected finite numbers, {name} has"):
        deployed.load_state_dict(state)
    assert torch.equal(deployed(x), want)


def test_nor_converted_to_a_dtype_that_has_none_for_them() -> None:
    deployed = ran.deploy(shaped(NETWORKS["authors"]()))
    for name, tensor in deployed.network.state_dict().items():
        if name.endswith("conv2.weight"):
            tensor.view(-1)[0] = 1e6
            break
    x = images()
    want = deployed(x)
    with pytest.raises(UserError, match=f"model, in float16: expected finite numbers, {name} has"):
        deployed.half()
    assert deployed.dtype == torch.float32
    assert torch.equal(deployed(x), want)
    assert deployed.to(torch.bfloat16).dtype == torch.bfloat16
    assert deployed(x).isfinite().all()
