"""torch.compile without graph breaks and torch.export of every network.

Tracing takes its time for every layer, so here every kind of network is traced with one attention
module, or one block a stage: names that differ in the number or width of those are one kind.
``-m deep`` traces every name at its full depth.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch

import ran
from ran.models.cbam_registry import CBAM_PLANS
from ran.models.registry import SPECS
from tests.models.helpers import randomise
from tests.models.test_every_network import images, narrow_options


def shallow_options(name: str) -> dict[str, Any]:
    """One attention module, in the stage of the deepest mask, or one block a stage."""
    if name not in SPECS:
        return {"layers": (1, 1, 1, 1)}
    return {"modules": (1,) + (0,) * (len(SPECS[name].modules) - 1), "tail_units": 1}


def kind(name: str) -> str:
    """What is left of a network's plan without width and depth."""
    if name not in SPECS:
        return str({**CBAM_PLANS[name], "channels": 0, "layers": 0})
    return str(replace(SPECS[name].scaled(0.01), **shallow_options(name)))


KINDS: dict[str, list[str]] = {}
for listed in ran.list_models():
    KINDS.setdefault(kind(listed), []).append(listed)


@torch.no_grad()
def trace(name: str, **options: Any) -> None:
    model: Any = randomise(ran.create_model(name, **narrow_options(name), **options)).eval()
    x = images(model, 2)
    expected = model(x)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), expected)


@pytest.mark.parametrize("names", KINDS.values(), ids=" ".join)
def test_kinds_compile_and_export(names: list[str]) -> None:
    trace(names[0], **shallow_options(names[0]))


@pytest.mark.deep
@pytest.mark.parametrize("name", ran.list_models())
def test_networks_compile_and_export(name: str) -> None:
    trace(name)
