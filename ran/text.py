"""Words for people: counted nouns, and names that a line can hold."""

import json
import unicodedata
from typing import Any

#: Endings of nouns whose plural takes -es; an "epoch" ends hard.
_HISSING = ("s", "x", "tch", "nch", "sh")


def plural(count: int, noun: str) -> str:
    """``count`` and the noun in the number that it asks for: "1 image", "2,000 classes"."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun}{'es' if noun.endswith(_HISSING) else 's'}"


def printable(text: str) -> str:
    """``text`` on one line and in characters that every font and encoding of UTF-8 may be given.

    What is no character (bytes of a file's name that are no UTF-8) and what a terminal would obey
    (line ends, escapes, a change of direction) is written as Python does: ``\\xff``, ``\\n``.
    """
    if text.isprintable():
        return text
    return "".join(map(_printable, text))


def _printable(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # Python's stand-in for a byte that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    # not printable to Python, but harmless: spaces of any width, and what joins letters and emoji
    harmless = character in "\u200c\u200d" or unicodedata.category(character) == "Zs"
    return character if character.isprintable() or harmless else repr(character)[1:-1]


def json_text(content: Any) -> str:
    """Indented JSON that UTF-8 can hold: bytes of a name that are no UTF-8 are written ``\\udcff``,
    which every reader of JSON takes back into the same name."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    return "".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in text)
