"""``model.json``: what it says of a network, checked when written and when read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checks import MOST_CLASSES, require, require_count, shown
from ..data.images import MOST_CHANNELS, Preprocessing
from ..errors import UserError
from ..files import read_json
from ..models.options import TIMM_OPTIONS
from ..models.origin import SHAPING
from ..text import plural

CARD_FILE = "model.json"

_FORMAT, _VERSION = "ran-network", 1
#: Options that stand outside ``options`` in the JSON, as readers other than this one want them.
_SIZES = ("num_classes", "in_chans")


def card_content(
    name: str,
    options: dict[str, Any],
    class_names: Sequence[str] | None,
    preprocessing: Preprocessing | None,
) -> dict[str, Any]:
    """What ``model.json`` says of a network. Raises UserError where the extras do not fit it."""
    for option, value in options.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            kind = type(value).__name__
            raise UserError(f"option {option}: expected a value of JSON, got a {kind}") from None
    content: dict[str, Any] = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": name,
        "options": {key: value for key, value in options.items() if key not in _SIZES},
        **{key: options[key] for key in _SIZES if key in options},
    }
    if class_names is not None:
        names, count = list(class_names), options.get("num_classes")
        if isinstance(class_names, str) or len(names) != count:
            expected = plural(count or 0, "name")
            raise UserError(f"class_names: expected {expected}, got {shown(class_names)}")
        content["class_names"] = names
    if preprocessing is not None:
        channels, count = preprocessing.channels, options.get("in_chans")
        if channels != count:
            expected = plural(count or 0, "channel")
            raise UserError(f"preprocessing: expected {expected}, got {channels}")
        content["preprocessing"] = preprocessing.to_json()
    return content


def read_card(path: Path) -> dict[str, Any]:
    """The content of a ``model.json``. Raises UserError where it is none, naming the field."""
    content = read_json(path, format=_FORMAT, version=_VERSION)
    check_card(content, path)
    return content


def check_card(content: Mapping[str, Any], source: Path) -> None:
    """Raise UserError that names ``source`` and the field that is missing or malformed."""
    for field, kind in (("model", str), ("options", dict)):
        if field not in content:
            raise UserError(f"{source}: expected a field {field!r}, it has none")
        if not isinstance(content[field], kind):
            raise UserError(f"{source}: a field is malformed: {field} is {shown(content[field])}")
    try:
        _check_options(content)
        _check_extras(content)
    except ValueError as error:
        raise UserError(f"{source}: a field is malformed: {error}") from None


def card_options(content: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """All the options of a network that the content of its ``model.json`` gives."""
    options, sizes = content["options"], {key: content[key] for key in _SIZES if key in content}
    if clash := sorted(sizes.keys() & options.keys()):
        raise UserError(f"{source}: expected {clash[0]} once, it is among the options too")
    return {**options, **sizes}


def _check_options(content: Mapping[str, Any]) -> None:
    for name in content["options"]:
        # timm's say where files are: none of them shapes a network, and no card of ours has one.
        foreign = not isinstance(name, str) or name in TIMM_OPTIONS - SHAPING
        require(not foreign, "options", "those of the network alone", name)
    for name, least, most in (("num_classes", 0, MOST_CLASSES), ("in_chans", 1, MOST_CHANNELS)):
        if name in content:
            require_count(name, least, content[name], most=most)


def _check_extras(content: Mapping[str, Any]) -> None:
    names = content.get("class_names")
    if names is not None:
        texts = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        require(texts and len(names) > 0, "class_names", "a list of texts", names)
        count = content.get("num_classes", len(names))
        require(
            len(names) == count, "class_names", f"{plural(count, 'name')} as of num_classes", names
        )
    if (given := content.get("preprocessing")) is not None:
        known = Preprocessing.from_json(given)
        count = content.get("in_chans", known.channels)
        require(
            known.channels == count, "mean", f"{plural(count, 'number')} as of in_chans", known.mean
        )
