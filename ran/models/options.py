"""The options that every network's factory takes beside the arguments of its own plan."""

from collections.abc import Collection

from ..checks import require_known

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


def require_options(given: Collection[str], own: Collection[str]) -> None:
    """Raise ValueError that names the first of ``given`` that is no option."""
    known = sorted(HEAD_OPTIONS | TIMM_OPTIONS | set(own))
    for option in given:
        require_known("option", known, option)
