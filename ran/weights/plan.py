"""What a source of weights has to say about one model and one checkpoint."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from ..errors import UserError
from ..models.residual_attention import ResidualAttentionNetwork


@dataclass(frozen=True)
class Change:
    """What has to be done to a tensor on its way into a model."""

    what: str
    apply: Callable[[Tensor], Tensor]


@dataclass
class Plan:
    """Where each tensor of a model comes from. Names on the left are the model's."""

    names: dict[str, str]
    """The checkpoint's name of each tensor."""
    changes: dict[str, Change] = field(default_factory=dict)
    zeros: dict[str, str] = field(default_factory=dict)
    """Tensors that become zero, and why."""
    left: dict[str, str] = field(default_factory=dict)
    """Tensors that stay as they are, and why."""
    ignored: dict[str, str] = field(default_factory=dict)
    """Tensors of the checkpoint, by its names, that its own network does not use, and why."""
    beside: dict[str, str] = field(default_factory=dict)
    """Tensors of the checkpoint, by its names, that are none of the network's, and why."""
    squeezed: bool = False
    """Whether a shape may have axes of size 1 that the model's does not, and the reverse."""


@dataclass(frozen=True)
class Source:
    """One implementation whose checkpoints can be loaded.

    ``recognises`` decides from a checkpoint's names. ``plan`` raises UserError for a model whose
    outputs would differ from that implementation's, whatever its weights.
    """

    recognises: Callable[[Iterable[str]], bool]
    plan: Callable[[nn.Module, Mapping[str, Tensor]], Plan]


def tensor_names(model: nn.Module, layers: Mapping[str, str]) -> dict[str, str]:
    """The checkpoint's names of the model's tensors, from those of its layers.

    A tensor in a layer that ``layers`` does not name keeps the model's own name, so that it is
    reported by it.
    """
    names = {}
    for name in model.state_dict():
        layer, _, tensor = name.rpartition(".")
        names[name] = f"{layers.get(layer, layer)}.{tensor}"
    return names


def unit_layers(model: nn.Module, ours: str, names: Mapping[str, str]) -> dict[str, str]:
    """``names``, of the layers of the unit ``ours``, by the layers' full names in the model.

    Those it does not have are left out, such as the shortcut's in a unit that keeps the shape, or
    all of a unit that was pruned.
    """
    try:
        unit = model.get_submodule(ours)
    except AttributeError:
        return {}
    present = {name for name, _ in unit.named_modules()}
    return {f"{ours}.{name}": theirs for name, theirs in names.items() if name in present}


def require_attention(model: nn.Module, **options: Any) -> ResidualAttentionNetwork:
    """The model, if it is a residual attention network built with these options.

    Names and shapes of tensors do not show them, so a network with other options would take the
    weights and compute something else. Raises UserError that lists what differs.
    """
    if not isinstance(model, ResidualAttentionNetwork):
        raise UserError(
            f"expected a residual attention network to load into, got {type(model).__name__}"
        )
    spec = model.spec
    if spec.post_units is None:
        spec = replace(spec, post_units=spec.p)
    wrong = [name for name, value in options.items() if getattr(spec, name) != value]
    if wrong:
        expected = ", ".join(f"{name}={options[name]!r}" for name in wrong)
        got = ", ".join(f"{name}={getattr(spec, name)!r}" for name in wrong)
        raise UserError(f"these weights need a network with {expected}, this one has {got}")
    return model
