"""Weights by the layers of the authors' published graphs, beside the graphs themselves."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import ran
from ran.errors import UserError
from tests.models.graph import evaluate, load_graph, weights_for
from tests.models.helpers import build, randomise, relative

#: Networks with a width at which they are quick and that their units allow.
NETWORKS = {
    "attention56": 0.125,
    "attention92": 0.125,
    "attentionnext56": 0.25,
    "attentionnext92": 0.25,
}
ORDER = ("weight", "bias", "running_mean", "running_var")


def narrow(name: str) -> ran.ResidualAttentionNetwork:
    return build(name, width_multiplier=NETWORKS[name]).double().eval()


def published(name: str) -> dict[str, dict[str, Tensor]]:
    """Random weights for a graph, by its own layer names."""
    graph = load_graph(name)
    model = randomise(narrow(name))
    return weights_for(graph, model, torch.randn(1, 3, 64, 64, dtype=torch.float64))


def arrays(weights: dict[str, dict[str, Tensor]]) -> dict[str, list[np.ndarray]]:
    return {
        layer: [tensors[kind].numpy() for kind in ORDER if kind in tensors]
        for layer, tensors in weights.items()
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_of_the_published_graph(name: str, tmp_path: Path) -> None:
    weights = published(name)
    flat = {
        f"{layer}.{index}": array
        for layer, items in arrays(weights).items()
        for index, array in enumerate(items)
    }
    np.savez(tmp_path / "weights.npz", allow_pickle=False, **flat)
    model = narrow(name)
    report = ran.load_checkpoint(model, tmp_path / "weights.npz")
    # The graphs average over 7×7 at the end, which no smaller size leads to.
    x = torch.randn(1, 3, 195, 197, dtype=torch.float64)
    with torch.no_grad():
        expected = evaluate(load_graph(name), weights, x)["classifier"]
        assert relative(model(x), expected) < 1e-9
    assert report.source == "caffe"
    assert set(report.left.values()) == {"the checkpoint does not count batches"}
    assert len(report.loaded) == len(flat)
    assert {*report.loaded, *report.left} == set(model.state_dict())
    assert [report.ignored, report.unexpected, report.adapted] == [{}, (), {}]


def test_lists_of_arrays_load_with_the_axes_caffe_gives_them() -> None:
    content = arrays(published("attention56"))
    model, same = narrow("attention56"), narrow("attention56")
    ran.load_checkpoint(model, content)
    # Caffe's vectors may have four axes, and files may have the other byte order.
    content = {
        layer: [a.reshape(1, -1, 1, 1).astype(">f8") if a.ndim == 1 else a for a in items]
        for layer, items in content.items()
    }
    ran.load_checkpoint(same, content)
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in same.state_dict().items())


def test_a_graph_loads_into_its_own_network_only() -> None:
    content = arrays(published("attention56"))
    with pytest.raises(UserError, match=r"\d+ missing: .*AttentionB_2"):
        ran.load_checkpoint(narrow("attention92"), content)
    with pytest.raises(UserError, match=r"graph='authors', pool='caffe', this one has graph="):
        ran.load_checkpoint(build("attention56", graph="additive", pool="torch"), content)
    with pytest.raises(UserError, match="mask_depths"):
        ran.load_checkpoint(build("attention56_cifar"), content)
