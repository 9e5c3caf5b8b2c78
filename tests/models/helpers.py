"""What several tests of the networks share."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import pytest
import torch
from torch import Tensor, nn

import ran
from tests.watching import kept_by

#: What torch.export says of an image whose size its graph is not for.
GUARD = "Guard failed"

Network = TypeVar("Network", bound=nn.Module)


def build(name: str, **options: Any) -> ran.ResidualAttentionNetwork:
    """``ran.create_model``, typed for what it gives here."""
    return cast(ran.ResidualAttentionNetwork, ran.create_model(name, **options))


def randomise(model: Network) -> Network:
    """The model, with random weights and statistics under which every layer shapes the output."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.3)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.normal_(module.bias)
    return model


def relative(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return ((got - expected).norm() / expected.norm()).item()


def small(**options: Any) -> ran.ResidualAttentionNetwork:
    """A network with every kind of block, quick to run: mask depths 2 and 0, a stem with a pool."""
    plan: dict[str, Any] = {
        "modules": (1, 2),
        "widths": (16, 24),
        "strides": (1, 2),
        "mask_depths": (2, 0),
        "stem_width": 8,
        "tail_width": 32,
        "tail_units": 1,
    }
    return ran.attention56_cifar_pool(**{**plan, **options})


def gradients(model: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Tensor]:
    """Every parameter's gradient of a loss that no layer's symmetry cancels."""
    assert isinstance(model, nn.Module)
    model.zero_grad()
    logits = model(x)
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
    }


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all buffers."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def stored(model: nn.Module, x: Tensor) -> int:
    """Bytes that the forward keeps for the backward, weights included once."""
    return sum(t.untyped_storage().nbytes() for t in kept_by(lambda: model(x)))


def check_export(model: nn.Module, example: Tensor, shapes: list[tuple[int, ...]]) -> None:
    """Asserts that the model exports with a free batch, height and width and computes the same.

    ``shapes`` are what the exported program is given, the last ones of sizes that have the parities
    of the example's in every pooling: PyTorch's own max pooling asks for no others where its shapes
    are traced by a version that guards on them (2.11), and the program then says so.
    """
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(model, (example,), dynamic_shapes=({0: free, 2: free, 3: free},))
    guarded = _pooling_is_guarded()
    for index, shape in enumerate(shapes):
        x = torch.randn(shape)
        if guarded and index == 0:
            with pytest.raises(AssertionError, match=GUARD):
                program.module()(x)
        else:
            torch.testing.assert_close(program.module()(x), model(x))


def _pooling_is_guarded() -> bool:
    """Whether an exported max pooling alone refuses images of another parity."""
    free = torch.export.Dim.DYNAMIC
    shapes = ({2: free},)
    pool = torch.export.export(
        nn.MaxPool2d(3, 2, 1), (torch.randn(1, 1, 32, 32),), dynamic_shapes=shapes
    )
    try:
        pool.module()(torch.randn(1, 1, 41, 32))
    except AssertionError as error:
        return GUARD in str(error)
    return False
