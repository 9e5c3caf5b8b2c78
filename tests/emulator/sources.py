"""csrc as plain C++: CUDA's syntax becomes calls of the shim, line for line.

Line numbers stay, so that what the emulator reports can be looked up in csrc.
"""

import re
from pathlib import Path

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
#: Takes the place of csrc/common/device.h: tensors of the CPU go to the CUDA launchers.
DEVICE = HERE / "device.h"

_SHARED = r"__shared__\s+(?:__align__\(\d+\)\s+|alignas\(\d+\)\s+)?"
_DYNAMIC = re.compile(rf"extern\s+{_SHARED}([\w ]+?)\s+(\w+)\[\];")
_STATIC = re.compile(rf"^(\s*){_SHARED}([\w:<> ]+?)\s+(\w+)((?:\[[^\]]+\])*);", re.MULTILINE)
_STORE16 = re.compile(
    r'asm\s+volatile\(\s*"st\.global\.(?:\w+\.)*v4\.b32 .*?"memory"\);', re.DOTALL
)
_NARROWING = re.compile(r"static_cast<(int|unsigned|int32_t|uint32_t)>\(")


def sources(*, narrow: bool = False) -> dict[str, str]:
    """{path within csrc: text} of all that the emulator compiles; a .cu file becomes a .cpp file.

    Args:
        narrow: casts to integers of 32 bits are checked to keep the value; see runtime/narrow.h.
    """
    texts = {}
    for path in sorted([*CSRC.glob("*.h"), *CSRC.glob("*.cpp"), *CSRC.glob("common/*.h")]):
        texts[str(path.relative_to(CSRC))] = path.read_text()
    texts["common/device.h"] = DEVICE.read_text()
    for path in sorted([*CSRC.glob("cuda/*.cu"), *CSRC.glob("cuda/*.cuh")]):
        name = path.relative_to(CSRC)
        if path.suffix == ".cu":
            name = name.with_suffix(".cpp")
        text = plain(path.read_text(), str(path.relative_to(CSRC)))
        texts[str(name)] = _NARROWING.sub(r"EMULATOR_NARROW(\1, ", text) if narrow else text
    return texts


def plain(text: str, name: str) -> str:
    """A CUDA source as plain C++.

    Raises:
        ValueError: the source holds syntax of CUDA's that this does not know.
    """
    text = _DYNAMIC.sub(
        r"\1* const \2 = reinterpret_cast<\1*>(::emulator::dynamic_shared());", text
    )
    text = _STATIC.sub(r"\1static \2 \3\4; ::emulator::static_shared(&\3, sizeof(\3));", text)
    text = _STORE16.sub(
        lambda match: _on_as_many_lines("::emulator::store16(to, word);", match.group()), text
    )
    text = _launches(text, name)
    code = re.sub(r"//[^\n]*", "", text)
    for left in ("asm volatile", "asm(", "__shared__", "<<<"):
        if left in code:
            raise ValueError(f"{name}: tests/emulator/sources.py does not know this use of {left}")
    return text


def _on_as_many_lines(new: str, old: str) -> str:
    return new + "\n" * (old.count("\n") - new.count("\n"))


def _launches(text: str, name: str) -> str:
    """kernel<T><<<grid, threads>>>(a)  ->  ::emulator::Launch(grid, threads).run(kernel<T>, a)"""
    while (at := text.find("<<<")) >= 0:
        end = text.index(">>>", at)
        begin = _start_of_name(text, at)
        opening = text.index("(", end)
        if text[end + 3 : opening].strip():
            raise ValueError(f"{name}: a launch without arguments: {text[at : end + 40]!r}")
        no_arguments = re.match(r"\s*\)", text[opening + 1 :])
        call = f"::emulator::Launch({text[at + 3 : end].strip()}).run({text[begin:at].strip()}"
        call = re.sub(r"\n\s*", " ", call + ("" if no_arguments else ", "))
        text = (
            text[:begin] + _on_as_many_lines(call, text[begin : opening + 1]) + text[opening + 1 :]
        )
    return text


def _start_of_name(text: str, end: int) -> int:
    """Where the name begins, with its template arguments, that ends before `end`."""
    at = end
    while text[at - 1].isspace():
        at -= 1
    if text[at - 1] == ">":
        depth = 0
        while True:
            at -= 1
            depth += {">": 1, "<": -1}.get(text[at], 0)
            if depth == 0:
                break
    while re.match(r"[\w:]", text[at - 1]):
        at -= 1
    return at
