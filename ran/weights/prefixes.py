"""What wrappers write in front of the names of a checkpoint's tensors, taken away."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from ..errors import UserError
from .plan import Plan
from .report import listed
from .sources import SOURCES, recognise

#: By DataParallel, torch.compile, Lightning and the usual classes around a network.
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.", "backbone.", "encoder.", "m.")
#: How many of them one may stand before another.
_DEEPEST = 4


def plan_under(
    model: nn.Module, tensors: Mapping[str, Tensor], source: str, prefix: str | None
) -> tuple[str, dict[str, Tensor], Plan]:
    """The source, the tensors by the names of that source, and its plan of them.

    ``prefix`` None tries ``PREFIXES`` and takes those under which most of the model's tensors are.
    The plan says of tensors beside them, such as a criterion's, that they are ignored.

    Raises UserError where no name begins with ``prefix``, names are of no source or ``model`` is
    another network.
    """
    if prefix is None:
        return _likeliest(model, tensors, source)
    found = _under(tensors, prefix)
    if not found:
        raise UserError(
            f"prefix: expected what names begin with ({listed([*tensors])}), got {prefix!r}"
        )
    return _planned(model, tensors, found, source, prefix)


def _likeliest(
    model: nn.Module, tensors: Mapping[str, Tensor], source: str
) -> tuple[str, dict[str, Tensor], Plan]:
    found, most, refusal = None, -1, None
    for prefix, under in _ways(tensors):
        try:
            way = _planned(model, tensors, under, source, prefix)
        except UserError as error:
            # of the names under the most prefixes, which every name may have
            whole = len(under) == len(tensors)
            refusal = refusal or (error if whole else None)
            continue
        count = sum(name in under for name in way[2].names.values())
        if count > most:
            found, most = way, count
    if found is None:
        assert refusal is not None  # of no prefix at all, at least
        raise refusal
    return found


def _ways(
    tensors: Mapping[str, Tensor], before: str = "", depth: int = _DEEPEST
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each prefix of ``PREFIXES``' and the tensors under it, the longest first, none at last."""
    for prefix in PREFIXES if depth else ():
        if under := _under(tensors, prefix):
            yield from _ways(under, before + prefix, depth - 1)
    yield before, dict(tensors)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix) and name != prefix
    }


def _planned(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    under: dict[str, Tensor],
    source: str,
    prefix: str,
) -> tuple[str, dict[str, Tensor], Plan]:
    source = recognise(under) if source == "auto" else source
    plan = SOURCES[source].plan(model, under)
    beside = [name for name in tensors if not name.startswith(prefix) or name == prefix]
    plan.beside |= dict.fromkeys(beside, f"not under {prefix!r}")
    return source, under, plan
