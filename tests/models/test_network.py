"""Networks as users meet them: shapes, sizes, options, errors and training."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import ran
from ran.models.registry import SPECS
from tests.models.helpers import build, gradients, randomise, relative, small

IMAGENET = ("attention56", "attention92", "attentionnext56", "attention92_448")
#: The deeper ones differ from these in the number of modules alone.
SHALLOW = [name for name, spec in SPECS.items() if sum(spec.modules) <= 9]


@pytest.mark.parametrize("name", SHALLOW)
def test_every_network_takes_its_own_input(name: str) -> None:
    with torch.device("meta"):
        model = build(name).eval()
        x = torch.empty(2, *model.pretrained_cfg["input_size"])
        assert model(x).shape == (2, model.pretrained_cfg["num_classes"])


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_networks_take_other_sizes(name: str) -> None:
    with torch.device("meta"):
        model = build(name, num_classes=7).eval()
        for size in ((193, 225), (320, 320), (448, 448), (64, 150)):
            assert model(torch.empty(1, 3, *size)).shape == (1, 7)


@pytest.mark.parametrize("pool", ["caffe", "torch"])
@pytest.mark.parametrize(
    "name", ["attention56", "attention92_448", "attention56_cifar", "attention56_cifar_pool"]
)
def test_minimum_size_is_the_smallest_that_works(name: str, pool: str) -> None:
    model = build(name, width_multiplier=0.1, pool=pool).eval()
    least = model.minimum_size
    model(torch.randn(1, 3, least, least + 1))
    with pytest.raises(ValueError, match=rf"x: .* at least {least}, got \(1, 3, {least - 1}, 64\)"):
        model(torch.randn(1, 3, least - 1, 64))
    if pool == "caffe":
        # Without the check, a pooling or nothing fails: so the bound is not too high.
        model.minimum_size = 0
        with pytest.raises(RuntimeError):
            model(torch.randn(1, 3, least - 1, least))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 3, 32, 6)])
def test_inputs_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    model = small()
    calls = (model, model.forward_intermediates, model.attention_masks)
    for call in calls:
        with pytest.raises(ValueError, match=r"x: expected shape \(N, 3, H, W\)"):
            call(torch.zeros(shape))


@pytest.mark.parametrize("build", [small, partial(ran.cbam_resnet18, num_classes=5)])
def test_images_of_integers_are_refused(build: Callable[[], Any]) -> None:
    model = build()
    for call in (model, model.forward_intermediates, model.attention_masks):
        with pytest.raises(ValueError, match=r"x: expected floating point, got torch.uint8"):
            call(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"graph": "additive"},
        {"activation": "channel"},
        {"activation": "spatial", "residual": False},
        {"p": 2, "t": 1, "r": 2},
        {"p": 0, "tail_units": 0},
        {"unit": "resnext", "widths": (64, 128), "tail_width": 128},
    ],
    ids=str,
)
def test_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    model = randomise(small(**options))
    dead = [name for name, g in gradients(model, torch.randn(4, 3, 32, 32)).items() if not g.any()]
    assert dead == []


def test_options_shape_the_network() -> None:
    model = ran.attention56_cifar(
        num_classes=5, in_chans=1, width_multiplier=0.5, modules=[1, 0, 2], drop_rate=0.5
    )
    assert model.spec.widths == (32, 64, 128)
    assert model.spec.stem_width == 8
    assert model.spec.modules == (1, 0, 2)
    assert model.head.drop.p == 0.5
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 5)
    assert [*model.attention_masks(torch.randn(1, 1, 16, 16))] == [
        "stages.0.attention1",
        "stages.2.attention1",
        "stages.2.attention2",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": -1}, "num_classes: expected an integer of at least 0 .* got -1"),
        ({"in_chans": 0}, "in_chans: expected an integer of at least 1, got 0"),
        ({"drop_rate": 1.5}, "drop_rate: expected a probability, got 1.5"),
        ({"drop_rate": "0.5"}, "drop_rate: expected a probability, got '0.5'"),
        ({"global_pool": "max"}, "global_pool: expected one of 'avg', '', got 'max'"),
        ({"width_multiplier": 0}, "width_multiplier: expected a positive number .* got 0"),
        ({"width_multiplier": math.inf}, "width_multiplier: expected a positive number .* got inf"),
        ({"widths": (16, 30)}, r"widths: expected multiples of 4 .* got \(16, 30\)"),
        ({"strides": (1,)}, r"strides: expected one integer .* each stage, .* got \(1,\)"),
        ({"tail_width": 33}, "tail_width: expected multiples of 4 .* got 33"),
        ({"stem_kernel": 4}, "stem_kernel: expected an odd integer, got 4"),
        ({"modules": ()}, r"modules: expected one integer .* got \(\)"),
        ({"t": 0}, "t: expected an integer of at least 1 .* got 0"),
        ({"post_units": -1}, "post_units: expected an integer of at least 0 .* got -1"),
        ({"pretrained": True}, "pretrained: expected False"),
    ],
)
def test_values_that_cannot_be_built_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_additive_graph_has_the_same_parameters() -> None:
    authors, additive = small(), small(graph="additive")
    shapes = {name: value.shape for name, value in authors.state_dict().items()}
    assert shapes == {name: value.shape for name, value in additive.state_dict().items()}


def test_state_dict_round_trip() -> None:
    model, other = randomise(small()).eval(), small().eval()
    x = torch.randn(2, 3, 32, 32)
    assert relative(other(x), model(x)) > 0.1
    assert str(other.load_state_dict(model.state_dict())) == "<All keys matched successfully>"
    assert torch.equal(other(x), model(x))


def test_initialisation_goes_by_module_type() -> None:
    torch.manual_seed(1)
    model = ran.attention56_cifar_wide()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            deviation = (2 / fan_out) ** 0.5
            assert module.weight.std().item() == pytest.approx(deviation, rel=0.1)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    assert (model.head.fc.bias == 0).all()


def test_a_few_steps_learn_one_batch() -> None:
    model = small(num_classes=2)
    x, y = torch.randn(8, 3, 16, 16), torch.arange(8) % 2
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(15):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_deepcopy_is_independent() -> None:
    model = small().eval()
    other = copy.deepcopy(model)
    x = torch.randn(1, 3, 16, 16)
    before = model(x)
    randomise(other)
    assert torch.equal(model(x), before)
