"""Words for people: counted nouns, and names that a line can hold."""

import json
from typing import Any

#: Endings of nouns whose plural takes -es.
_HISSING = ("s", "x", "ch", "sh")


def plural(count: int, noun: str) -> str:
    """``count`` and the noun in the number that it asks for: "1 image", "2,000 classes"."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun}{'es' if noun.endswith(_HISSING) else 's'}"


def printable(text: str) -> str:
    """``text`` on one line and in characters that every font and encoding of UTF-8 may be given.

    What is no character (bytes of a file's name that are no UTF-8) and what a terminal would obey
    (line ends, escapes) is written as Python writes it: ``\\xff``, ``\\n``.
    """
    if text.isprintable():
        return text
    whole = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    # spaces of any width and joined emoji are no printable characters to Python, and harmless
    return "".join(c if c >= "\xa0" or c.isprintable() else repr(c)[1:-1] for c in whole)


def json_text(content: Any) -> str:
    """Indented JSON that UTF-8 can hold: bytes of a name that are no UTF-8 are written ``\\udcff``,
    which every reader of JSON takes back into the same name."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    return "".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in text)
