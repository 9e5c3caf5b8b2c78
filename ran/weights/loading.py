"""Copying a checkpoint of another implementation into a model, all of it or nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import require_choice, require_finite
from ..errors import UserError
from ..models.cbam_resnet import CbamResNet
from ..models.residual_attention import ResidualAttentionNetwork
from .plan import Plan
from .prefixes import plan_under
from .reading import read_tensors
from .report import ABSENT, SHAPE, Differences, LoadReport, shapes_differ
from .sources import SOURCES

_UNCOUNTED = "the checkpoint does not count batches"


def load_checkpoint(
    model: nn.Module,
    path_or_state_dict: str | Path | Mapping[str, Any],
    source: str = "auto",
    strict: bool = True,
    prefix: str | None = None,
) -> LoadReport:
    """Load weights that this or another implementation saved into a network of this package.

    With equal weights the network computes what the other implementation's does, in evaluation
    mode; a network built with options that would make it compute something else is refused.

    Args:
        model: from ``ran.create_model``, also with ``features_only`` or through
            ``torch.compile``. Its tensors keep their dtype and device.
        path_or_state_dict: a .pt, .pth, .pkl, .tar, .bin, .ckpt, .safetensors or .npz file, or
            what such a file may hold: tensors or arrays by name, perhaps nested ("state_dict",
            "model", …) or with a prefix. Nothing in a file is executed.
        source: whose names the weights have; "auto" recognises it from them:

            - "ran": this package's own.
            - "caffe": the authors' graphs, ``{layer: [arrays]}`` or flat ``layer.0``, ``layer.1``,
              into attention56, attention92, attentionnext56 and attentionnext92. A BN layer holds
              scale, shift, mean and variance.
            - "tengshaofeng": ResidualAttentionNetwork-pytorch, and "pytorchcv": its resattnets,
              into networks built with ``graph="additive", pool="torch"``.
            - "cbam": attention-module, the CBAM authors' repository. "pytorchcv": its
              cbam_resnets. "timm": its residual networks with ``attn_layer="cbam"``.
            - "resnet": plain residual networks of torchvision or timm, into a CBAM network, whose
              CBAM modules keep the values they have.
        strict: refuse weights that do not fill the model or that it has no place for. Otherwise
            what fits is loaded, such as all but a classifier of other classes, and the report
            lists the rest.
        prefix: what stands before the names of the network's tensors, such as "student.encoder.";
            those beside them, such as a criterion's, are ignored, with ``strict`` too. None finds
            the usual ones ("module.", "model.", "backbone.", …), several in a row too.

    Raises:
        UserError: a ValueError of one line. ``model`` is no module, or is on the meta device; the
            file is missing, damaged, holds code or something else than weights; its names are of no
            source, or none begins with ``prefix``; the model is another network, or differs in
            options; with ``strict``, tensors differ, of which it lists the first. The model is as
            it was before.
        ValueError: ``source`` is none of these.
    """
    require_choice("source", ("auto", *SOURCES), source)
    network = _network(model)
    try:
        tensors = read_tensors(path_or_state_dict)
        source, tensors, plan = plan_under(network, tensors, source, prefix)
        return _load(network, tensors, plan, source, strict)
    except UserError as error:
        given = isinstance(path_or_state_dict, Mapping)
        where = "state_dict" if given else path_or_state_dict
        raise UserError(f"{where}: {error}") from None


def _network(model: nn.Module) -> nn.Module:
    """What holds the tensors by the names that this package gives them."""
    if not isinstance(model, nn.Module):
        raise UserError(f"model: expected a network, got a {type(model).__name__}")
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    inner = getattr(model, "model", None)  # what timm's feature extractor wraps
    if isinstance(inner, ResidualAttentionNetwork | CbamResNet):
        model = inner
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        # Copying to it would do nothing and say nothing.
        raise UserError("model: expected tensors with memory, it is on the meta device")
    return model


def _load(
    model: nn.Module, tensors: Mapping[str, Tensor], plan: Plan, source: str, strict: bool
) -> LoadReport:
    state = model.state_dict()
    ready: dict[str, Tensor] = {}
    left, differences = dict(plan.left), Differences()
    for name, target in state.items():
        if name in plan.left:
            continue
        theirs = plan.names[name]
        value = tensors.get(theirs)
        if name in plan.zeros:
            ready[name] = torch.zeros_like(target)
        elif value is None and name.endswith(".num_batches_tracked"):
            left[name] = _UNCOUNTED
        elif value is None:
            differences.missing.append(theirs)
            left[name] = f"{ABSENT}{theirs}"
        elif not _fits(value, target, plan.squeezed):
            differences.shapes[theirs] = shapes_differ(target, value)
            left[name] = f"{SHAPE}{differences.shapes[theirs]}"
        else:
            value = value.reshape(target.shape).to(target.device, target.dtype)
            ready[name] = plan.changes[name].apply(value) if name in plan.changes else value
    known = {*plan.ignored, *(plan.names[name] for name in state if name not in plan.left)}
    differences.unexpected = [name for name in tensors if name not in known]
    if differences and strict:
        # Of another network some fit too, and loading those is not the way.
        near = 5 * len(ready) >= 4 * len(state)
        way = f"; strict=False loads the {len(ready)} that fit" if near else ""
        raise UserError(
            f"expected the {source} names and shapes of this {type(model).__name__}: "
            f"{differences}{way}"
        )
    if not ready:
        raise UserError(f"none of its tensors fits this {type(model).__name__}: {differences}")

    require_finite("weights", ready)
    # Everything that can fail has been done.
    with torch.no_grad():
        for name, value in ready.items():
            state[name].copy_(value)
    changed = {name: plan.changes[name].what for name in ready if name in plan.changes}
    return LoadReport(
        source=source,
        loaded=tuple(name for name in ready if name not in plan.zeros),
        adapted={**changed, **plan.zeros},
        left=left,
        ignored={**plan.ignored, **plan.beside},
        unexpected=tuple(differences.unexpected),
    )


def _fits(value: Tensor, target: Tensor, squeezed: bool) -> bool:
    if not squeezed:
        return value.shape == target.shape
    return value.squeeze().shape == target.squeeze().shape
