"""The networks compute what the authors' published graphs compute."""

from typing import Any

import pytest
import torch

import ran
from tests.models.graph import evaluate, load_graph, multiply_adds, weights_for
from tests.models.helpers import build, randomise, relative

NAMES = ("attention56", "attention92", "attentionnext56", "attentionnext92")


# The graphs average over 7×7 at the end, which several sizes lead to: odd ones tell the pooling of
# the graphs (rounding up, no padding) from PyTorch's.
@pytest.mark.parametrize(
    ("name", "size"), [*zip(NAMES, [(224, 224), (197, 211), (203, 224), (195, 195)], strict=True)]
)
def test_output_equals_the_published_graph(name: str, size: tuple[int, int]) -> None:
    model = randomise(build(name)).double().eval()
    graph = load_graph(name)
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    weights = weights_for(graph, model, x[..., :64, :64])
    with torch.no_grad():
        expected = evaluate(graph, weights, x)["classifier"]
        assert relative(model(x), expected) < 1e-9
    assert expected.std() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_multiply_adds_equal_the_published_graph(name: str) -> None:
    graph = load_graph(name)
    with torch.device("meta"):
        model = build(name).eval()
        x = torch.empty(1, 3, 224, 224)
    expected = multiply_adds(graph, weights_for(graph, model, x), x)
    assert ran.count_multiply_adds(model) == expected


@pytest.mark.parametrize(
    "option",
    [{"graph": "additive"}, {"pool": "torch"}, {"residual": False}, {"activation": "spatial"}],
    ids=str,
)
def test_variants_compute_something_else(option: dict[str, Any]) -> None:
    model = randomise(build("attention56", width_multiplier=0.125)).eval()
    variant = build("attention56", width_multiplier=0.125, **option).eval()
    variant.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        assert relative(variant(x), model(x)) > 1e-3
