"""What the GPU tests will take on a machine that has one, found out on one that has none.

``pytest -p tests.rehearsal --record FOLDER`` notes the processor's seconds that each test takes,
and every Triton kernel that the interpreter launches, as the GPU's twin of that test would.
``python -m tests.rehearsal compile FOLDER`` compiles for sm_90 what Triton would compile there, a
kernel for each dtype, divisibility and constant, and goes on where it was cut.
``python -m tests.rehearsal estimate FOLDER PROCESSES SECONDS`` says whether the tests fit.

The tests of shapes that are too large for the interpreter (``cbam_cases.fits``) are missing.
"""

import json
import os
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
#: Processor seconds that a process takes before its first test, and from CUDA's start.
START = 20.0


class Recorder:
    """Notes what the tests of one process take, and launch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}
        self.launches: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        begin = _processor_seconds()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = _processor_seconds() - begin

    def pytest_sessionfinish(self) -> None:
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
            triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
            done[key] = _processor_seconds() - begin
            if time.monotonic() - saved > 5 or number == len(wanted):
                path.write_text(json.dumps(done))
                saved = time.monotonic()
                print(f"{number} of {len(wanted)} compiled", file=sys.stderr)
    path.write_text(json.dumps({key: done[key] for key in wanted}))


def estimate(folder: Path, processes: int, limit: float) -> bool:
    """Prints what the GPU tests will take in so many processes; whether that is under the limit.

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
    took = START + total / processes
    fits = took <= limit
    print(
        f"{len(compiled)} variants of {len(by_kernel)} kernels: {compiling:.0f} s to compile; "
        f"twins on a GPU: of {len(native)} native tests, {each:.2f} s each, and {len(triton)} of "
        "Triton"
    )
    print(
        f"in {processes} processes: {took:.0f} s of {limit:.0f}: "
        + ("fits" if fits else "does not fit")
    )
    return fits


def main(arguments: list[str]) -> int:
    """The command line."""
    what, folder = arguments[0], Path(arguments[1])
    if what == "compile":
        compile_all(folder)
        return 0
    return 0 if estimate(folder, int(arguments[2]), float(arguments[3])) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
