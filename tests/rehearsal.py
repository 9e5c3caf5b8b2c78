"""What the GPU tests will take on a machine that has one, found out on one that has none.

``pytest -p tests.rehearsal --record FOLDER`` notes the processor's seconds that each test takes,
and every Triton kernel that the interpreter launches, as the GPU's twin of that test would.
``python -m tests.rehearsal compile FOLDER`` compiles for sm_90 what Triton would compile there, a
kernel for each dtype, divisibility and constant, and goes on where it was cut.
``python -m tests.rehearsal estimate RECORDS``, of what ``tools/gpu_rehearse.sh`` has measured, says
what ``tools/gpu.sh`` will take on a machine of 16 cores, and whether that fits.

The tests of shapes that are too large for the interpreter (``cbam_cases.fits``) are missing.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

#: What Triton calls PyTorch's dtypes.
DTYPES = {
    "float64": "fp64",
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "int32": "i32",
    "int64": "i64",
    "uint8": "u8",
}
#: The options of a launch that a kernel is compiled anew for, and their defaults.
OPTIONS = {"num_warps": 4, "num_stages": 3, "num_ctas": 1}
#: Seconds between two writes of what is noted, or compiled.
EVERY = 10.0
#: Processor seconds that a process takes before its first test, and from CUDA's start.
START = 20.0
#: Of the machine with a GPU, and of the suite there.
CORES, PROCESSES = 16, 8
#: Seconds that tools/gpu.sh gives a call, and the steps that it gives less.
CALL, LIMITS = 570.0, {"build": 300.0, "test": 400.0, "ceilings": 60.0}
#: The steps of its first two calls.
CALLS = {1: ("build", "test", "ceilings", "kernels"), 2: ("build", "ceilings", "networks")}
#: The steps that keep what they have when they are cut, and go on from there when called again.
RESUMED = ("kernels", "networks")
#: The options of the first call's kernels, and the networks of the second; the one that is tried.
FIRST_TABLE = ["--dtype=bfloat16", "--layout=channels_last", "--first-stage", "--batch=256"]
MEASURED, TRIED = ("cbam_resnet50", "attention92"), "cbam_resnet18"


class Recorder:
    """Notes what the tests of one process take, and launch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}
        self.launches: set[str] = set()
        self._written = time.monotonic()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        begin = _processor_seconds()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = _processor_seconds() - begin
            if time.monotonic() - self._written > EVERY:
                self.write()

    def pytest_sessionfinish(self) -> None:
        self.write()

    def write(self) -> None:
        """Writes what is noted so far: a run may be cut."""
        self._written = time.monotonic()
        content = {"seconds": self.seconds, "launches": sorted(self.launches)}
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{os.getpid()}.json").write_text(json.dumps(content))

    def watch(self) -> None:
        """Has Triton's interpreter note what it launches."""
        from triton.runtime.interpreter import InterpretedFunction

        run = InterpretedFunction.run

        def noted(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            if kernel.fn.__module__.startswith("ran_kernels.triton."):
                self.launches.add(_launch(kernel, args, kwargs))
            return run(kernel, *args, **kwargs)

        InterpretedFunction.run = noted


def _launch(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    file = kernel.fn.__module__.rpartition(".")[2]
    given = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    names = [name for name in (*kernel.arg_names, *OPTIONS) if name in given]
    return json.dumps([f"{file}.{kernel.fn.__name__}", {n: _argument(given[n]) for n in names}])


def _argument(value: Any) -> Any:
    """As ``compile_triton.specialised`` takes it."""
    if not hasattr(value, "data_ptr"):
        return value
    aligned = "" if value.data_ptr() % 16 == 0 else "?"
    return f"*{DTYPES[str(value.dtype).removeprefix('torch.')]}{aligned}"


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, metavar="FOLDER", help="note what the tests take")


def pytest_configure(config: pytest.Config) -> None:
    folder = config.getoption("--record")
    if folder:
        os.environ["TRITON_INTERPRET"] = "1"  # before the kernels' modules are imported
        recorder = Recorder(folder.absolute())
        recorder.watch()
        config.pluginmanager.register(recorder)


def recorded(folder: Path) -> tuple[dict[str, float], list[str]]:
    """Seconds by test, and the launches, of all processes."""
    seconds: dict[str, float] = {}
    launches: set[str] = set()
    for path in folder.glob("[0-9]*.json"):
        content = json.loads(path.read_text())
        seconds.update(content["seconds"])
        launches.update(content["launches"])
    return seconds, sorted(launches)


def compile_all(folder: Path) -> None:
    """Compiles what was launched for sm_90, and writes the seconds of each kernel's variants."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tests.kernels.compile_triton import specialised

    path = folder / "compiled.json"
    done: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    _, launches = recorded(folder)
    wanted: dict[str, Any] = {}
    failed: list[str] = []
    for launch in launches:
        name, arguments = json.loads(launch)
        options = {key: arguments.pop(key) for key in OPTIONS if key in arguments}
        kernel, *parts = specialised(name, arguments)
        wanted.setdefault(repr((name, *parts, sorted(options.items()))), (kernel, parts, options))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # an empty one: everything is compiled
        saved = time.monotonic()
        for number, (key, (kernel, parts, options)) in enumerate(wanted.items(), 1):
            if key in done:
                continue
            signature, constants, attributes = parts
            begin = _processor_seconds()
            source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
            try:
                triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
            except Exception as error:  # the others are wanted, too: a GPU would go on as well
                failed.append(key)
                print(f"{key} does not compile: {error!r}", file=sys.stderr)
                continue
            done[key] = _processor_seconds() - begin
            if time.monotonic() - saved > EVERY or number == len(wanted):
                path.write_text(json.dumps(done))
                saved = time.monotonic()
                print(f"{number} of {len(wanted)} compiled", file=sys.stderr)
    path.write_text(json.dumps({key: done[key] for key in wanted if key in done}))
    if failed:
        sys.exit(f"{len(failed)} of {len(wanted)} variants do not compile")


def tests(folder: Path) -> float:
    """Seconds of the GPU tests.

    Each takes what its twin on the CPU does; those of Triton, whose twins were interpreted, what
    the native ones take, and besides what compiling its kernels does.
    """
    seconds, _ = recorded(folder)
    compiled: dict[str, float] = json.loads((folder / "compiled.json").read_text())
    by_kernel: dict[str, list[float]] = defaultdict(list)
    for key, value in compiled.items():
        by_kernel[key.split("'")[1]].append(value)
    for name, values in sorted(by_kernel.items(), key=lambda entry: -sum(entry[1])):
        print(f"{name}: {len(values)} variants, {sum(values):.0f} s")
    native = [value for name, value in seconds.items() if "native-cpu" in name]
    triton = [value for name, value in seconds.items() if "triton-cpu" in name]
    each = sum(native) / max(1, len(native))
    compiling = sum(compiled.values())
    total = sum(native) + each * len(triton) + compiling
    print(
        f"{len(compiled)} variants of {len(by_kernel)} kernels: {compiling:.0f} s to compile; "
        f"twins on a GPU: of {len(native)} native tests, {each:.2f} s each, and {len(triton)} of "
        "Triton"
    )
    return START + total / PROCESSES


def build(records: Path) -> float:
    """Seconds of the build on all cores: its share of them, and as long again for the longest."""
    return 2 * _recorded_seconds(records / "build.seconds") / CORES


def kernels(records: Path, options: list[str]) -> float:
    """Seconds of the kernels' benchmarks with these options, each of which compiles a reference."""
    path = max((records / "out-kernels").glob("kernels-*.json"))
    measured = len(json.loads(path.read_text())["results"])
    each = (_recorded_seconds(records / "step-kernels.seconds") - START) / measured
    command = [sys.executable, "-m", "pytest", "bench/kernels", "--collect-only", "-q", *options]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    wanted = sum("::" in line for line in listed.splitlines())
    print(f"{wanted} benchmarks of {each:.1f} s")
    return START + wanted * each


def networks(records: Path) -> float:
    """Seconds of the networks' benchmarks: they compile each twice, a training and an inference."""
    import torch

    import ran

    path = max((records / "out-networks").glob("network-speed-*.json"))
    (entry,) = json.loads(path.read_text())["results"]
    with torch.device("meta"):
        sizes = {name: len(list(ran.create_model(name).modules())) for name in (TRIED, *MEASURED)}
    # By the number of modules; a training has a backward, which takes more than the forward.
    each = entry["compile_seconds"]["ours compiled"] / sizes[TRIED]
    return START + sum(2 * 1.5 * each * sizes[name] for name in MEASURED)


def _recorded_seconds(path: Path) -> float:
    return sum(map(float, path.read_text().split()))


def estimate(records: Path) -> bool:
    """Prints what the parts of the first two calls will take; whether what must be whole fits."""
    measured = {
        "build": lambda: build(records),
        "test": lambda: tests(records / "tests"),
        "ceilings": lambda: START,
        "kernels": lambda: kernels(records, FIRST_TABLE),
        "networks": lambda: networks(records),
    }
    found: dict[str, float] = {}
    for name, measure in measured.items():
        try:
            found[name] = measure()
        except (FileNotFoundError, ValueError):
            print(f"{name}: not rehearsed yet")
            continue
        limit = LIMITS.get(name, CALL)
        verdict = "fits" if found[name] <= limit else "does not fit, and is cut"
        print(f"{name}: {found[name]:.0f} s of {limit:.0f}: {verdict}")
    whole = True
    for number, names in CALLS.items():
        if not found.keys() >= set(names):
            continue
        seconds = sum(found[name] for name in names)
        must = [name for name in names if name not in RESUMED]
        least = sum(found[name] for name in must)
        within = all(found[name] <= LIMITS.get(name, CALL) for name in must)
        whole = whole and within and least <= CALL
        print(f"call {number} ({', '.join(names)}): {seconds:.0f} s of {CALL:.0f}: ", end="")
        if seconds <= CALL:
            print("fits")
        elif least <= CALL:
            again = math.ceil((seconds - least) / (CALL - least))
            print(f"does not fit; what is cut goes on when called again, {again} times in all")
        else:
            print("does not fit")
    return whole


def main(arguments: list[str]) -> int:
    """The command line."""
    what, folder = arguments[0], Path(arguments[1])
    if what == "compile":
        compile_all(folder)
        return 0
    return 0 if estimate(folder) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
