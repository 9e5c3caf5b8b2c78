"""The layout of the packages: which way imports run, and what lies where."""

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import ran

ROOT = Path(__file__).parents[1]
#: The packages, and the rooms of ``ran``, from the lowest up. Those of a level do not matter to
#: each other's place, but two of them must not need each other either.
PACKAGES = (("ran_kernels",), ("ran",), ("bench", "examples", "tests"))
ROOMS = (
    ("models", "data"),
    ("weights",),
    ("pictures",),
    ("training", "evaluation", "serving"),
    ("cli",),
)
#: What lies directly in ``ran`` and is no room's: tools that every room may use. The package
#: itself, which hands out the public names, stands above all rooms.
FRONT = ("ran", "ran.__main__")
MOST_FILES = 10


def modules(package: str) -> dict[str, Path]:
    """{dotted name: source} of a package of the checkout."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, source: str, *, package: bool, known: set[str]) -> Iterator[str]:
    """The modules of ``known`` that the source of module ``name`` imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = name.split(".") if node.level else []
            base = base[: len(base) - node.level + package] if node.level else base
            target = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{target}.{alias.name}"
                if inner in known:
                    yield inner
                elif target in known:
                    yield target


def arrows() -> set[tuple[str, str]]:
    """(importing module, imported module) of the checkout's own packages."""
    found: dict[str, Path] = {}
    for packages in PACKAGES:
        for package in packages:
            found |= modules(package)
    known = set(found)
    return {
        (name, target)
        for name, path in found.items()
        for target in imports(
            name, path.read_text(), package=path.name == "__init__.py", known=known
        )
        if target != name
    }


def level(name: str) -> tuple[int, int]:
    """Of the package and, inside ``ran``, of the room: 0 is what every room may use."""
    package, *rest = name.split(".")
    outer = next(i for i, packages in enumerate(PACKAGES) if package in packages)
    if package != "ran":
        return outer, 0
    if name in FRONT:
        return outer, len(ROOMS) + 1
    inner = [i for i, rooms in enumerate(ROOMS, start=1) if rest[0] in rooms]
    return outer, inner[0] if inner else 0


def uphill(found: set[tuple[str, str]]) -> list[str]:
    return sorted(f"{a} imports {b}" for a, b in found if level(a) < level(b))


def circle(found: set[tuple[str, str]]) -> list[str]:
    """The names along one circle of imports, or nothing."""
    after: dict[str, list[str]] = {}
    for a, b in sorted(found):
        after.setdefault(a, []).append(b)
    done: set[str] = set()
    way: list[str] = []

    def walk(name: str) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        way.append(name)
        for target in after.get(name, []):
            if seen := walk(target):
                return seen
        done.add(way.pop())
        return []

    return next((seen for name in sorted(after) if (seen := walk(name))), [])


def room(name: str) -> str:
    """``ran.data`` of ``ran.data.folder``; the name itself where it is in no room."""
    parts = name.split(".")
    rooms = {room for rooms in ROOMS for room in rooms}
    return ".".join(parts[:2]) if parts[0] == "ran" and parts[1:2] and parts[1] in rooms else name


def test_no_import_runs_from_a_lower_room_to_a_higher_one() -> None:
    found = arrows()
    assert len(found) > 300  # it sees them
    assert uphill(found) == []


def test_no_two_files_import_each_other_not_even_by_a_detour() -> None:
    assert circle(arrows()) == []


def test_no_two_rooms_import_each_other() -> None:
    between = {(room(a), room(b)) for a, b in arrows() if a.startswith("ran.")}
    assert circle({(a, b) for a, b in between if a != b and b.startswith("ran.")}) == []


def test_the_checks_see_what_breaks_the_rules() -> None:
    known = {"ran.data", "ran.data.folder", "ran.cli.train", "ran.weights.report"}
    source = "def f():\n    from ..cli import train\n    from . import folder\n"
    seen = set(imports("ran.data.order", source, package=False, known=known))
    assert seen == {"ran.cli.train", "ran.data.folder"}
    assert set(imports("ran.weights", "from .report import X", package=True, known=known)) == {
        "ran.weights.report"
    }
    assert uphill({("ran.data.order", "ran.cli.train"), ("ran.cli.train", "ran.data.order")}) == [
        "ran.data.order imports ran.cli.train"
    ]
    assert uphill({("ran_kernels.nn", "ran.files")}) == ["ran_kernels.nn imports ran.files"]
    assert uphill({("ran.files", "ran.data.order")}) == ["ran.files imports ran.data.order"]
    seen_circle = circle({("a", "b"), ("b", "c"), ("c", "b")})
    assert {*pairwise(seen_circle)} == {("b", "c"), ("c", "b")}


def test_few_files_lie_directly_in_the_package() -> None:
    files = [path.name for path in (ROOT / "ran").glob("*.py")]
    assert len(files) <= MOST_FILES, files


def test_every_folder_is_a_room() -> None:
    folders = {path.parent.name for path in (ROOT / "ran").glob("*/__init__.py")}
    assert folders == {room for rooms in ROOMS for room in rooms}


@pytest.mark.parametrize("name", sorted(dir(ran)))
def test_no_package_hides_a_public_name(name: str) -> None:
    assert not (ROOT / "ran" / name).exists()
    assert not (ROOT / "ran" / f"{name}.py").exists()


def test_the_tests_mirror_the_rooms() -> None:
    rooms = {room for rooms in ROOMS for room in rooms}
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")}
    assert rooms <= folders
    assert folders - rooms <= {"kernels", "bench", "regression", "emulator"}
