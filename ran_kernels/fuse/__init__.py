"""Puts the fused operators into somebody's model: CBAM, and batch normalisation with its ReLU."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from ..nn import CBAM
from .norms import fuse_norms, unfuse
from .readers import READERS, UnusualError
from .sameness import understood

__all__ = ["FuseReport", "fuse", "unfuse"]

#: What becomes of each module of a known name: its replacement, or why it has none.
Outcomes = dict[nn.Module, CBAM | str]


@dataclass
class FuseReport:
    """What `fuse` did."""

    replaced: list[str] = field(default_factory=list)
    """Names of the modules that are `ran_kernels.nn.CBAM` now."""
    left: dict[str, str] = field(default_factory=dict)
    """Names of the CBAM modules that stayed as they were, and why."""
    norms: dict[str, list[str]] = field(default_factory=dict)
    """Names of the modules whose forward has normalisations fused now, as in ``bn1+relu``."""
    norms_left: dict[str, str] = field(default_factory=dict)
    """Names of the modules in whose forward a normalisation stayed as it was, and why."""

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} CBAM modules replaced, {len(self.left)} left"]
        lines += [f"  replaced {name}" for name in self.replaced]
        lines += [f"  left {name or '(the model)'}: {reason}" for name, reason in self.left.items()]
        if self.norms or self.norms_left:
            pairs = sum(map(len, self.norms.values()))
            lines.append(
                f"{pairs} normalisations fused in {len(self.norms)} modules, "
                f"{len(self.norms_left)} modules left"
            )
        for name, found in self.norms.items():
            lines.append(f"  fused {name or '(the model)'}: {', '.join(found)}")
        for name, reason in self.norms_left.items():
            lines.append(f"  left {name or '(the model)'}: {reason}")
        return "\n".join(lines)


def fuse(model: nn.Module, *, norms: bool = False) -> FuseReport:
    """Replaces the CBAM modules in `model`, in place, by `ran_kernels.nn.CBAM`.

    With `norms`, batch normalisation followed by ReLU, and by an addition and ReLU, become one node
    each, as `ran_kernels.nn.norm_relu` and its kin do it, in every module whose forward torch.fx
    can follow. Nothing is replaced for that: modules, parameters, names and hooks are those they
    were, and `unfuse` takes it back. Deep copies are fused as well; a pickle holds the modules as
    they were, so that it loads anywhere. What the forward asked when it was followed, of
    attributes, methods, modes and classes of parts, is asked again at every call; where an answer
    is another, a part that is passed over has hooks, or the model is being traced or exported, the
    module's own forward runs. A forward that names what cannot be asked again, as a global
    variable, is left. `fuse` again after exchanging parts, and before what puts classes of its own
    over modules, as FSDP. Differentiating twice needs `backend("reference")`.

    Of CBAM, known are timm's CbamModule, the CBAM of the authors' attention-module repository, and
    pytorchcv's CbamBlock, by their classes' names and parts. Before a module is replaced, a copy of
    it is watched while it runs on random weights, and compared with its replacement, the whole and
    each half, on inputs of many sizes, values and layouts, in evaluation and in training: results,
    gradients and buffers. One that computes anything else is left alone. So is one that does more
    than to compute: that keeps something, asks for the input's size, dtype or values, draws random
    numbers, sets autocast, has hooks, a derivative or methods of `torch.nn.Module` of its own, or
    cannot be copied. It takes about 0.2 s for each kind and width of module, 1 s for 2048
    channels; modules alike but for their tensors' values are asked once.

    The replacement has the modes and the very parameters and buffers of the original, so an
    optimizer made before goes on. Fuse after loading a state_dict, whose names change. All modules
    are looked at before the first is replaced: an error leaves the model as it was.
    Among equal maxima, and NaN, the gradient goes to the first, where timm's shares it.

    Args:
        model: any module that contains CBAM modules or normalisations.
        norms: fuse batch normalisation, too.

    Returns:
        What was replaced and fused, what was left and why. Its ``str`` has a line for each.

    Raises:
        TypeError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a module, got {type(model).__name__}")
    report = FuseReport()
    outcomes: Outcomes = {}  # a module may stand in several places
    places = [*_places(model, outcomes, set())]
    _leave_what_is_shared(model, outcomes)
    _share_norms(outcomes)
    plan: list[tuple[nn.Module, str, CBAM]] = []
    for name, parent, module in places:
        outcome = outcomes[module]
        if isinstance(outcome, str):
            report.left[name] = outcome
        elif parent is None:
            report.left[name] = "it is the whole model: nothing holds it"
        elif isinstance(parent, torch.jit.ScriptModule):
            report.left[name] = "a compiled script holds it"
        else:
            plan.append((parent, name.rpartition(".")[2], outcome))
            report.replaced.append(name)
    _replace(plan)
    if norms:
        fuse_norms(model, report.norms, report.norms_left)
    return report


def _places(
    module: nn.Module,
    outcomes: Outcomes,
    alike: set[str],
    name: str = "",
    above: tuple[nn.Module, ...] = (),
) -> Iterator[tuple[str, nn.Module | None, nn.Module]]:
    """Each place where a module of a known name stands: its name, what holds it, and the module.

    Fills in `outcomes`. Not within a module that has a replacement, and never within itself.
    """
    if type(module).__name__ in READERS and not isinstance(module, CBAM):
        if module not in outcomes:
            outcomes[module] = _outcome(module, alike)
        yield name, above[-1] if above else None, module
        if isinstance(outcomes[module], CBAM):
            return
    for child, part in module._modules.items():
        if part is not None and part is not module and part not in above:
            full = f"{name}.{child}".removeprefix(".")
            yield from _places(part, outcomes, alike, full, (*above, module))


def _outcome(module: nn.Module, alike: set[str]) -> CBAM | str:
    try:
        return understood(module, alike)
    except UnusualError as reason:
        return str(reason)


def _leave_what_is_shared(model: nn.Module, outcomes: Outcomes) -> None:
    """Leaves the modules of which a part would vanish that the model also has elsewhere."""
    while True:
        staying = {model}
        rest = [] if isinstance(outcomes.get(model), CBAM) else [model]
        for module in rest:  # which grows meanwhile
            for part in module._modules.values():
                if part is not None and part not in staying:
                    staying.add(part)
                    if not isinstance(outcomes.get(part), CBAM):
                        rest.append(part)
        shared: Outcomes = {}
        for module, outcome in outcomes.items():
            if isinstance(outcome, CBAM):
                kept = {module, *outcome.modules()}
                for name, part in module.named_modules():
                    if part in staying and part not in kept:
                        shared[module] = f"the model has its {name} elsewhere, too"
                        break  # the names of what is in it follow
        if not shared:
            return
        outcomes.update(shared)


def _share_norms(outcomes: Outcomes) -> None:
    # A normalisation made anew for two modules that had one between them would be two.
    made: dict[tuple[int, ...], nn.BatchNorm2d] = {}
    for outcome in outcomes.values():
        if isinstance(outcome, CBAM):
            key = tuple(map(id, (*outcome.norm.parameters(), *outcome.norm.buffers())))
            outcome.norm = made.setdefault(key, outcome.norm) if key else outcome.norm


def _replace(plan: list[tuple[nn.Module, str, CBAM]]) -> None:
    """Puts each module under its name, or none of them."""
    before = [(parent, child, parent._modules[child]) for parent, child, _ in plan]
    try:
        for parent, child, fused in plan:
            parent._modules[child] = fused
    except BaseException:
        for parent, child, module in before:
            parent._modules[child] = module
        raise
