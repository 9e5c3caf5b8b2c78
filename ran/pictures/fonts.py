"""Text in pictures: characters of any script, whichever fonts there are."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

from ..text import printable

#: matplotlib's own font, and those of many scripts that systems have, in order of preference.
_OWN = "DejaVu Sans"
_OTHERS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans SC"),
    *(
        "WenQuanYi Micro Hei",
        "WenQuanYi Zen Hei",
        "PingFang SC",
        "Hiragino Sans",
        "Microsoft YaHei",
    ),
    *("SimHei", "Malgun Gothic", "Droid Sans Fallback", "Arial Unicode MS", "Unifont"),
)


def legible(text: str) -> str:
    """``text`` with what no font here can draw written as Python writes it: ``\\u732b``.

    Lines stay, and so does what they are made of where a font has it.
    """
    return "\n".join(
        "".join(c if ord(c) in _drawable() else _escaped(c) for c in printable(line))
        for line in text.split("\n")
    )


def plain(text: str) -> str:
    """``legible`` text that matplotlib does not take for TeX where it stands between dollars."""
    return legible(text).replace("$", r"\$")


@contextmanager
def drawing(figure: Figure) -> Iterator[None]:
    """Inside, ``figure`` is drawn with the fonts that ``legible`` counts on.

    What matplotlib warns of there, lines of its own source included, is nothing that whoever runs
    the program could put right.
    """
    if len(families := _families()) > 1:
        for text in figure.findobj(Text):
            text.set_fontfamily(families)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


@cache
def _families() -> list[str]:
    installed = {entry.name for entry in fontManager.ttflist}
    return [_OWN, *(name for name in _OTHERS if name in installed)]


@cache
def _drawable() -> frozenset[int]:
    """The characters that one of the fonts has a glyph for."""
    files = [findfont(FontProperties(family=name)) for name in _families()]
    return frozenset().union(*(get_font(file).get_charmap() for file in files))


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
