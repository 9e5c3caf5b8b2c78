"""Commands as functions; each loads its machinery when it is called."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..extras import needed_by
from .recipes import combine
from .settings import make_settings

if TYPE_CHECKING:
    import lightning as L
    from rich.console import Console

    from .run import TrainingResult


def train(
    recipe: str | None = None,
    *,
    console: "Console | None" = None,
    callbacks: "Sequence[L.Callback]" = (),
    **settings: Any,
) -> "TrainingResult":
    """Trains a network, as ``ran train`` does.

    ``ran.train("digits", epochs=5, output="runs/five")`` writes the folder ``runs/five`` and
    returns what came of it; see ``ran.training.run.train`` for both.

    Args:
        recipe: of ``ran.training.recipes.list_recipes()``; None needs ``model`` and ``data``.
        console: gets progress; None for silence.
        callbacks: further ones of Lightning's.
        settings: fields of ``ran.training.settings.TrainingSettings``, over those of the recipe.

    Raises:
        UserError: a setting is unknown, missing or wrong, or a file is; the message names it. It
            is a ValueError.
        SystemExit: SIGTERM or an interrupt stopped the training, which ``resume`` continues.
    """
    checked = make_settings(combine(recipe, settings))
    with needed_by("ran.train"):
        from .run import train as run_training

    return run_training(checked, console, callbacks)
