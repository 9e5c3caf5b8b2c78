"""Compiles the kernels and the emulator's runtime, each kind once, into build/emulator.

An object file is named by a hash of all it was made from, so that nothing is compiled twice, and a
lock for each kind lets one process of several build it. The kinds:

- ``fast``: nothing but the kernels; the tensor side is built for this kind, as an extension.
- ``race``: every access is announced (-fsanitize=thread, with race.cpp in the place of its
  runtime), and products are contracted with sums, as nvcc does.
- ``asan``: AddressSanitizer and UndefinedBehaviorSanitizer.
- ``narrow``: casts that lose a value are reported.
"""

import contextlib
import fcntl
import functools
import hashlib
import itertools
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .sources import HERE, plain, sources

ROOT = HERE.parents[1]
FOLDER = ROOT / "build" / "emulator"
KINDS = ("fast", "race", "asan", "narrow")

_COMMON = ["-std=c++17", "-fPIC", "-g1", "-O1", f"-I{HERE / 'shim'}"]
_FMA = ["-mfma"] if platform.machine() == "x86_64" else []
_UNDEFINED = "-fno-sanitize=vptr,null,return,float-divide-by-zero"
#: What a kind compiles the kernels with, beside what all do.
_KERNELS = {
    "fast": ["-ffp-contract=off"],
    # A pack is copied whole, as nvcc does, which taking aggregates apart would undo.
    "race": [
        *("-fno-tree-vectorize", "-fno-tree-sra", *_FMA, "-ffp-contract=fast"),
        "-fsanitize=thread",
    ],
    "asan": [
        *("-ffp-contract=off", "-fno-omit-frame-pointer"),
        *("-fsanitize=address,undefined", _UNDEFINED),
    ],
    "narrow": [
        *("-ffp-contract=off", "-include", str(HERE / "runtime/narrow.h")),
        *("-fsanitize=undefined", "-fno-sanitize=vptr"),
    ],
}
#: And with what the runtime, which must not be watched by itself.
_RUNTIME = {"fast": [], "race": [], "asan": ["-fsanitize=address"], "narrow": []}
_LINK = {
    "fast": [],
    "race": [],
    "asan": ["-fsanitize=address,undefined"],
    "narrow": ["-fsanitize=undefined"],
}
#: Torch has the real cudart in the process: the library's own functions come first.
_SHARED = ["-shared", "-Wl,-Bsymbolic"]
#: The runtime's sources that watch accesses, which -fsanitize=thread announces.
_WATCHING = {"access.cpp", "race.cpp", "traffic.cpp", "tsan.cpp"}
#: How the dispatcher knows the emulated operators.
TORCH_TARGET = "0x020b000000000000"


class BuildError(RuntimeError):
    """The compiler said no; the message holds what it said."""


def compiler() -> str | None:
    """The C++ compiler: CXX, or g++ or clang++ on the PATH."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def missing() -> str | None:
    """Why nothing can be emulated here, or None."""
    if platform.system() != "Linux":
        return f"the emulator runs on Linux, this is {platform.system()}"
    return None if compiler() else "no C++ compiler (CXX, g++ or clang++)"


def kernels(kind: str) -> Path:
    """The library of the emulated kernels, launchers.cpp and the runtime, built where need be."""
    with _lock(kind):
        texts = sources(narrow=kind == "narrow")
        folder = _written(kind, texts)
        flags = [*_COMMON, "-w", f"-I{folder}"]
        units = sorted(n for n in texts if n.startswith("cuda/") and n.endswith(".cpp"))
        jobs = [(folder / name, [*flags, *_KERNELS[kind]]) for name in units]
        jobs += [(HERE / "launchers.cpp", flags), *_runtime(kind)]
        return _linked(f"kernels-{kind}", _compiled(kind, jobs), _LINK[kind])


def faults(kind: str) -> Path:
    """The library of the kernels in faults.cu, which are wrong on purpose."""
    with _lock(f"faults-{kind}"):
        source = FOLDER / f"faults-{kind}.cpp"
        text = plain((HERE / "faults.cu").read_text(), "faults.cu")
        if not source.is_file() or source.read_text() != text:
            source.write_text(text)
        jobs = [(source, [*_COMMON, "-w", *_KERNELS[kind]]), *_runtime(kind)]
        return _linked(f"faults-{kind}", _compiled(kind, jobs), _LINK[kind])


def _runtime(kind: str) -> list[tuple[Path, list[str]]]:
    left_out = {"watch_nothing.cpp"} if kind == "race" else _WATCHING
    flags = [*_COMMON, "-Wall", "-Wextra", *_RUNTIME[kind]]
    paths = sorted(HERE.glob("runtime/*.cpp"))
    return [(path, flags) for path in paths if path.name not in left_out]


def extension() -> Path:
    """The tensor side, csrc/*.cpp, whose tensors of the CPU go to the emulated kernels.

    Loading it registers the operators in the dispatcher's library ``ran_emulated``.
    """
    import torch

    installed = Path(torch.__file__).parent
    library = kernels("fast")
    with _lock("extension"):
        folder = _written("fast", sources())
        flags = [*_COMMON, "-O0", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", f"-I{folder}"]
        flags.append(f"-isystem{installed / 'include'}")
        jobs = [(path, flags) for path in sorted(folder.glob("*.cpp"))]
        return _linked(
            "extension",
            _compiled("extension", jobs),
            [str(library), f"-Wl,-rpath,{library.parent}", f"-L{installed / 'lib'}", "-ltorch_cpu"],
        )


def mutated(kind: str, unit: str, file: str, old: str, new: str, folder: Path) -> Path:
    """The library of `kind` with `old` replaced by `new` in csrc/cuda/`file`, compiled for `unit`.

    Raises:
        ValueError: `file` does not hold `old`.
    """
    original = kernels(kind)
    texts = sources(narrow=kind == "narrow")
    name = str(Path("cuda", file).with_suffix(".cpp" if file.endswith(".cu") else ".cuh"))
    if old not in texts[name]:
        raise ValueError(f"{file}: nothing to break, as it does not hold {old!r}")
    texts[name] = texts[name].replace(old, new)
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    made = folder / f"{unit}.o"
    flags = [*_COMMON, "-w", f"-I{folder}", *_KERNELS[kind]]
    _run([*flags, "-c", str(folder / "cuda" / f"{unit}.cpp"), "-o", str(made)])
    objects = Path(f"{original}.objects").read_text().split()
    others = [path for path in objects if not Path(path).name.startswith(f"{kind}-{unit}-")]
    library = folder / "libkernels.so"
    _run([*_SHARED, "-o", str(library), str(made), *others, *_LINK[kind], "-ldl"])
    return library


def sanitizer_libraries(kind: str) -> str:
    """What LD_PRELOAD must name for a library of this kind."""
    names = {"asan": ["libasan.so", "libubsan.so"], "narrow": ["libubsan.so"]}.get(kind, [])
    found = []
    for name in names:
        command = [str(compiler()), f"-print-file-name={name}"]
        found.append(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    return " ".join(found)


# ---- what was built already --------------------------------------------------------------------


@contextlib.contextmanager
def _lock(name: str) -> Iterator[None]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / f"{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _written(kind: str, texts: dict[str, str]) -> Path:
    """The folder that holds these sources, and no others."""
    folder = FOLDER / "sources" / ("narrow" if kind == "narrow" else "plain")
    with _lock("sources"):
        for path in folder.rglob("*.*"):
            if str(path.relative_to(folder)) not in texts:
                path.unlink()
        for name, text in texts.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.read_text() != text:
                path.write_text(text)
    return folder


def _compiled(kind: str, jobs: list[tuple[Path, list[str]]]) -> list[Path]:
    """Their object files, as many compilers at once as MAX_JOBS or the cores allow."""
    folder = FOLDER / "objects"
    folder.mkdir(exist_ok=True)

    def compile_one(job: tuple[Path, list[str]]) -> Path:
        source, flags = job
        prefix = f"{kind}-{source.stem}-"
        made = folder / f"{prefix}{_hash([*flags, *_texts(source, flags)])}.o"
        if not made.is_file():
            old = set(folder.glob(f"{prefix}*.o"))
            part = made.with_suffix(f".{os.getpid()}")
            _run([*flags, "-c", str(source), "-o", str(part)])
            part.rename(made)
            for path in old - {made}:
                path.unlink(missing_ok=True)
        return made

    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or min(cores, 4))) as pool:
        return list(pool.map(compile_one, jobs))


def _linked(name: str, objects: list[Path], libraries: list[str]) -> Path:
    made = FOLDER / f"lib{name}-{_hash([*_SHARED, *map(str, objects), *libraries])}.so"
    if not made.is_file():
        for old in FOLDER.glob(f"lib{name}-*"):
            old.unlink()
        part = made.with_suffix(".part")
        _run([*_SHARED, "-o", str(part), *map(str, objects), *libraries, "-ldl"])
        Path(f"{made}.objects").write_text("\n".join(map(str, objects)))
        part.rename(made)
    return made


def _texts(source: Path, flags: list[str]) -> list[str]:
    """The source and all headers of this project that it includes."""
    folders = [Path(flag[2:]) for flag in flags if flag.startswith("-I")]
    texts: dict[Path, str] = {}

    def read(path: Path) -> None:
        texts[path] = path.read_text()
        for quoted in re.findall(r'^#include ["<]([^">]+)[">]', texts[path], re.MULTILINE):
            for folder in (path.parent, *folders):
                found = (folder / quoted).resolve()
                if found.is_file() and found not in texts:
                    read(found)
                    break

    read(source.resolve())
    for flag, value in itertools.pairwise(flags):
        if flag == "-include":
            read(Path(value))
    return [text for _, text in sorted(texts.items())]


def _hash(parts: list[str]) -> str:
    return hashlib.sha256("\0".join([compiler_version(), *parts]).encode()).hexdigest()[:16]


@functools.cache
def compiler_version() -> str:
    run = subprocess.run([str(compiler()), "--version"], capture_output=True, text=True, check=True)
    return run.stdout.splitlines()[0]


def _run(arguments: list[str]) -> None:
    run = subprocess.run([str(compiler()), *arguments], capture_output=True, text=True)
    if run.returncode:
        raise BuildError(f"{' '.join(arguments[-4:])}\n{run.stderr[-4000:]}")
