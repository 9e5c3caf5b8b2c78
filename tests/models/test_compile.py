"""torch.compile, torch.export and gradient checkpointing."""

import copy

import pytest
import torch
from torch import nn

import ran
from tests.models.helpers import check_export, gradients, randomise, small, statistics, stored


def tiny() -> ran.ResidualAttentionNetwork:
    """One stage, one module: enough for every operator and quick to trace."""
    return randomise(
        small(modules=(1,), widths=(16,), strides=(1,), mask_depths=(2,), tail_units=0)
    )


def test_checkpointing_changes_no_gradient_and_no_statistic() -> None:
    plain = randomise(small()).double()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    expected = gradients(plain, x)
    # The gradient that a skip unit gives to its sum is added in another place: other rounding.
    torch.testing.assert_close(gradients(saving, x), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(statistics(saving), statistics(plain), rtol=0, atol=0)
    assert saving.get_buffer("stages.0.unit.bn1.num_batches_tracked") == 1
    for module in saving.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.momentum == 0.1
    saving.set_grad_checkpointing(False)
    assert not saving.grad_checkpointing


def test_checkpointing_stores_less() -> None:
    x = torch.randn(4, 3, 32, 32)
    plain = small()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    assert stored(saving, x) < stored(plain, x) / 2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiles_without_graph_breaks(checkpointing: bool) -> None:
    torch.compiler.reset()
    plain = tiny()
    other = copy.deepcopy(plain)
    other.set_grad_checkpointing(checkpointing)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 32, 32)
    expected = gradients(plain, x)
    got = {name.removeprefix("_orig_mod."): g for name, g in gradients(compiled, x).items()}
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(statistics(other), statistics(plain))


def test_exports_with_a_free_batch_and_size() -> None:
    check_export(
        tiny().eval(), torch.randn(2, 3, 32, 32), [(3, 3, 41, 26), (2, 3, 32, 32), (5, 3, 48, 64)]
    )
