"""The options that every network's factory takes beside the arguments of its own plan."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..checks import is_count, require, require_choice, require_known

#: Of every network's head and input.
HEAD_OPTIONS = frozenset({"num_classes", "in_chans", "global_pool", "drop_rate"})
#: What timm's create_model and build_model_with_cfg take for themselves.
TIMM_OPTIONS = frozenset(
    {
        "cache_dir",
        "feature_cls",
        "features_only",
        "out_indices",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
    }
)


def require_options(given: Mapping[str, Any], own: Collection[str], features: int) -> None:
    """Raise ValueError that names the first of ``given`` that is no option.

    Or what it asks for that a feature extractor of so many ``features`` has not.
    """
    known = sorted(HEAD_OPTIONS | TIMM_OPTIONS | set(own))
    for option in given:
        require_known("option", known, option)
    require_choice("features_only", (None, False, True), given.get("features_only"))
    indices = given.get("out_indices")
    several = isinstance(indices, Sequence) and not isinstance(indices, str)
    listed: Sequence[Any] = indices if several else ()  # type: ignore[assignment]
    known_ones = len(listed) > 0 and all(is_count(i, -features, features - 1) for i in listed)
    require(
        indices is None or is_count(indices, 1, features) or known_ones,
        "out_indices",
        f"the last 1 to {features}, or some of {-features} to {features - 1}",
        indices,
    )
