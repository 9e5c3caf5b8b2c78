"""Networks in a folder or in a repository: safetensors, and JSON that says how to rebuild them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from ..checks import MOST_CLASSES, require_count, shown
from ..data.images import Preprocessing
from ..errors import UserError
from ..files import replacing, require_path, write_json
from ..models.cbam_resnet import CbamResNet
from ..models.origin import Origin
from ..models.residual_attention import ResidualAttentionNetwork
from ..text import plural
from .assembly import assemble, build_network, differences, require_size, without_head
from .card import CARD_FILE, card_content, card_options
from .report import LoadReport
from .saved import WEIGHTS_FILE, Saved, read_pair, read_saved
from .tensors import require_one_dtype

#: Seconds in which a repository has to answer before what is cached of it counts.
PATIENCE = 5.0
#: In a network's ``pretrained_cfg``: its preprocessing was saved with it, and is not its name's.
TOLD = "preprocessing_saved"

_REPOSITORY = re.compile(r"[A-Za-z0-9]([\w.-]*\w)?/[A-Za-z0-9]([\w.-]*\w)?", re.ASCII)


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> Path:
    """Write ``model.safetensors`` and ``model.json`` into ``folder``, which is made if need be.

    The JSON holds the name and options that gave the network, with the classifier that it has
    now: that of ``reset_classifier``, or a ``torch.nn.Linear`` put in its place by hand. Each file
    is written whole or not at all, in place of one that is there.

    Args:
        model: any network of ``ran.create_model``, also through timm or ``torch.compile``.
        folder: where to write.
        class_names: by class number, one for each output.
        preprocessing: what to do to an image before the network; it has ``in_chans`` channels.

    Returns:
        The path of ``model.safetensors``.

    Raises:
        UserError: a ValueError of one line. The network is another one, or was changed so that
            its name and options do not give it; an extra does not fit it; or ``folder`` cannot be
            written. Nothing is written then.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    name, options = _current(model)
    content = card_content(name, options, class_names, preprocessing)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with torch.device("meta"):
        expected = build_network(name, options).state_dict()
    require_one_dtype("model", tensors)
    if differ := differences(expected, tensors):
        raise UserError(f"model: expected the tensors of {name} with its options, {differ}")
    weights = require_path("folder", folder) / WEIGHTS_FILE
    try:
        weights.parent.mkdir(parents=True, exist_ok=True)
        with replacing(weights) as partial:
            partial.write_bytes(save(tensors))
        write_json(weights.with_name(CARD_FILE), content)
    except OSError as error:
        raise UserError(f"{folder}: expected a folder to write in: {error.strerror}") from None
    return weights


def from_pretrained(
    folder_or_repo: str | Path, *, revision: str | None = None, num_classes: int | None = None
) -> nn.Module:
    """The network that ``save_pretrained`` or ``ran train`` saved, in evaluation mode on the CPU.

    Its tensors have the dtypes they were saved with. Where class names and preprocessing were
    saved too, they are in its ``pretrained_cfg`` by timm's names (``label_names``,
    ``input_size``, ``crop_pct``, ``interpolation``, ``mean``, ``std``). Its ``load_report`` is a
    :class:`ran.LoadReport` that says what was loaded and, of a new classifier, what was left.

    Args:
        folder_or_repo: a folder, the ``.safetensors`` file in it, a ``.ckpt`` file of a training,
            or, where there is no such folder, the "owner/name" of a repository, which
            huggingface_hub downloads once and caches; what is cached is taken where the repository
            does not answer in five seconds. Nothing that is read is executed.
        revision: a repository's branch, tag or commit, its main branch if None.
        num_classes: of a newly initialised classifier in place of the one that was saved, 0 for
            none; one of as many classes as were saved is loaded like the rest. None: as saved.

    Raises:
        UserError: a ValueError of one line. Nothing is there, huggingface_hub or the network is
            missing, a file is damaged, or the weights are another network's; it names the first
            tensors that differ.
    """
    saved = _read(folder_or_repo, revision)
    name, options = saved.content["model"], card_options(saved.content, saved.card)
    new_head = num_classes not in (None, options.get("num_classes"))
    if new_head:
        _require_head(num_classes, options)
        options["num_classes"] = num_classes
    model = assemble(
        lambda: build_network(name, options),
        saved.tensors,
        source=saved.weights,
        name=name,
        new_head=new_head,
    )
    model.load_report = _report(model, saved, new_head)  # type: ignore[assignment]
    _describe(model, saved, new_head)
    return model


def _require_head(num_classes: Any, options: dict[str, Any]) -> None:
    require_count("num_classes", 0, num_classes, most=MOST_CLASSES)
    if options.get("features_only"):
        raise UserError(
            f"num_classes: expected None for a feature extractor, which has no classifier, got "
            f"{num_classes}"
        )


def _report(model: nn.Module, saved: Saved, new_head: bool) -> LoadReport:
    own = model.state_dict()
    kept, taken = own, saved.tensors
    if new_head:
        kept, taken = (without_head(model, named) for named in (own, saved.tensors))
    started = f"a new classifier of {plural(getattr(model, 'num_classes', 0), 'class')}"
    return LoadReport(
        source="ran",
        loaded=tuple(kept),
        adapted={},
        left={name: started for name in own if name not in kept},
        ignored={},
        unexpected=tuple(name for name in saved.tensors if name not in taken),
    )


def _current(model: nn.Module) -> tuple[str, dict[str, Any]]:
    """The name and options that give a network of this one's tensors."""
    origin = getattr(model, "origin", None)
    if not isinstance(origin, Origin):
        raise UserError(
            f"model: expected a network of ran.create_model, got a {type(model).__name__}"
        )
    options = dict(origin.options)
    network = getattr(model, "model", model)  # what timm's feature extractor wraps
    if isinstance(network, ResidualAttentionNetwork | CbamResNet):
        # The classifier may have been replaced since.
        options |= {"num_classes": _classes(network), "in_chans": network.in_chans}
        pool: Any = getattr(network, "head", network).global_pool  # in the head, or timm's ResNet
        if pool.pool_type != options.get("global_pool", "avg"):
            options["global_pool"] = pool.pool_type
    return origin.name, options


def _classes(network: Any) -> int:
    """Of its classifier, which may have been exchanged by hand. Raises UserError for another kind.

    Kinds are compared exactly: what derives from a linear layer may compute something else.
    """
    head = getattr(network, "head", network)
    classifier: Any = getattr(head, "fc", None)
    plain = hasattr(head, "global_pool")  # and no module of somebody's for the whole head
    if plain and type(classifier) is nn.Identity:
        return 0
    linear = plain and type(classifier) is nn.Linear and classifier.bias is not None
    if linear and classifier.in_features == network.num_features:
        return int(classifier.out_features)
    where = network.pretrained_cfg["classifier"]
    found = head if classifier is None else classifier
    raise UserError(
        f"model: expected a Linear({network.num_features}, num_classes) with a bias for its "
        f"{where}, as reset_classifier(num_classes) makes, got {shown(found)}; its state_dict() "
        f"can be saved by torch.save"
    )


def _read(folder_or_repo: str | Path, revision: str | None) -> Saved:
    path = require_path("folder_or_repo", folder_or_repo)
    if path.is_dir() or (path.is_file() and path.suffix in (".ckpt", ".safetensors")):
        return read_saved(path)
    name = folder_or_repo if isinstance(folder_or_repo, str) else ""
    if _REPOSITORY.fullmatch(name) and not path.exists():
        return _download(name, revision)
    raise UserError(f"{path}: expected a folder with {WEIGHTS_FILE}, a .ckpt file, or owner/name")


def _download(repository: str, revision: str | None) -> Saved:
    """What a repository holds, or what is cached of it where it does not answer."""
    where = f"{repository}: found no such folder, and a repository"
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    except ImportError:
        raise UserError(f"{where} needs huggingface_hub, which is not installed") from None
    # hf_hub_download by itself asks again and again for half a minute. What is raised without a
    # network, a repository or the file depends on its version.
    silent: Exception | None = None
    try:
        get_hf_file_metadata(hf_hub_url(repository, CARD_FILE, revision=revision), timeout=PATIENCE)
    except Exception as error:
        silent = error
    paths: list[Path] = []
    for name in (CARD_FILE, WEIGHTS_FILE):
        try:
            found = hf_hub_download(
                repository, name, revision=revision, local_files_only=silent is not None
            )
        except Exception as error:
            told = silent or error
            reason = next(iter(str(told).strip().splitlines()), "")
            kind = type(told).__name__
            raise UserError(f"{where} gives no {name}: {kind}: {reason}".rstrip(": ")) from None
        paths.append(Path(found))
    card, weights = paths
    return read_pair(weights, card)


def _describe(model: nn.Module, saved: Saved, new_head: bool) -> None:
    """Put the extras where timm looks for them."""
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    names, given = saved.content.get("class_names"), saved.content.get("preprocessing")
    if new_head:
        cfg |= {"num_classes": model.num_classes}
    elif names is not None:
        cfg |= {"num_classes": len(names), "label_names": list(names)}
    if given:
        known = Preprocessing.from_json(given)
        require_size(model, known, saved.card)
        cfg |= {
            "input_size": (known.channels, known.image_size, known.image_size),
            "crop_pct": known.crop_fraction,
            "interpolation": "bilinear",
            "mean": known.mean,
            "std": known.std,
            TOLD: True,
        }
