"""Networks in a folder or in a repository: safetensors, and JSON that says how to rebuild them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from ..data.images import Preprocessing
from ..errors import UserError
from ..files import replacing, require_path, write_json
from ..models.cbam_resnet import CbamResNet
from ..models.origin import Origin
from ..models.residual_attention import ResidualAttentionNetwork
from .assembly import assemble, build_network, differences, read_safetensors, require_size
from .card import CARD_FILE, card_content, card_options, read_card
from .tensors import require_one_dtype

WEIGHTS_FILE = "model.safetensors"

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
    now. Each file is written whole or not at all, in place of one that is there.

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


def from_pretrained(folder_or_repo: str | Path, *, revision: str | None = None) -> nn.Module:
    """The network that ``save_pretrained`` or ``ran train`` saved, in evaluation mode on the CPU.

    Its tensors have the dtypes they were saved with. Where class names and preprocessing were
    saved too, they are in its ``pretrained_cfg`` by timm's names (``label_names``,
    ``input_size``, ``crop_pct``, ``interpolation``, ``mean``, ``std``).

    Args:
        folder_or_repo: a folder, the ``.safetensors`` file in it, or, where there is no such
            folder, the "owner/name" of a repository, which huggingface_hub downloads once and
            caches. Nothing that is read is executed or unpickled.
        revision: a repository's branch, tag or commit, its main branch if None.

    Raises:
        UserError: a ValueError of one line. Nothing is there, huggingface_hub or the network is
            missing, a file is damaged, or the weights are another network's; it names the first
            tensors that differ.
    """
    weights, card = _find(folder_or_repo, revision)
    content = read_card(card)
    options = card_options(content, card)
    model = assemble(
        lambda: build_network(content["model"], options),
        read_safetensors(weights),
        source=weights,
        name=content["model"],
    )
    _describe(model, content, card)
    return model


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
        options |= {"num_classes": network.num_classes, "in_chans": network.in_chans}
        pool: Any = getattr(network, "head", network).global_pool  # in the head, or timm's ResNet
        if pool.pool_type != options.get("global_pool", "avg"):
            options["global_pool"] = pool.pool_type
    return origin.name, options


def _find(folder_or_repo: str | Path, revision: str | None) -> tuple[Path, Path]:
    """The paths of the weights and of the JSON."""
    path = require_path("folder_or_repo", folder_or_repo)
    if path.is_file() and path.suffix == ".safetensors":
        return path, path.with_suffix(".json")
    if path.is_dir():
        return path / WEIGHTS_FILE, path / CARD_FILE
    name = folder_or_repo if isinstance(folder_or_repo, str) else ""
    if _REPOSITORY.fullmatch(name) and not path.exists():
        card = _download(name, CARD_FILE, revision)
        return _download(name, WEIGHTS_FILE, revision), card
    raise UserError(f"{path}: expected a folder with {WEIGHTS_FILE}, or owner/name")


def _download(repository: str, name: str, revision: str | None) -> Path:
    where = f"{repository}: found no such folder, and a repository"
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise UserError(f"{where} needs huggingface_hub, which is not installed") from None
    # What is raised without a network, a repository or the file depends on its version.
    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        kind = type(error).__name__
        raise UserError(f"{where} gives no {name}: {kind}: {reason}".rstrip(": ")) from None


def _describe(model: nn.Module, content: dict[str, Any], source: Path) -> None:
    """Put the extras where timm looks for them."""
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    if (names := content.get("class_names")) is not None:
        cfg |= {"num_classes": len(names), "label_names": names}
    if given := content.get("preprocessing"):
        known = Preprocessing.from_json(given)
        require_size(model, known, source)
        cfg |= {
            "input_size": (known.channels, known.image_size, known.image_size),
            "crop_pct": known.crop_fraction,
            "interpolation": "bilinear",
            "mean": known.mean,
            "std": known.std,
        }
