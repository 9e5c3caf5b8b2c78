"""Options of the kernel benchmarks, and the table they end with."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table

from bench.compare import default_device, keep_freed_memory
from bench.machine import describe
from bench.results_file import content, write
from ran.text import plural

from .cases import CASES
from .figures import ratio, row

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = ("contiguous", "channels_last")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ran kernels")
    group.addoption("--device", default="auto", choices=["auto", "cpu", "cuda"])
    group.addoption("--batch", type=int, action="append", help="repeatable; default by device")
    group.addoption("--dtype", action="append", choices=list(DTYPES), help="repeatable")
    group.addoption("--op", action="append", choices=list(CASES), help="repeatable; default all")
    group.addoption("--rounds", type=int, default=15)
    group.addoption("--first-stage", action="store_true", help="only the largest maps")
    group.addoption("--layout", action="append", choices=LAYOUTS, help="repeatable; default both")
    group.addoption("--result", type=Path, help="JSON file, written again after each benchmark")


def pytest_configure() -> None:
    keep_freed_memory()
    # float32 is float32 for all: cuDNN would convolve in TF32 what others compute exactly.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def _device(config: pytest.Config) -> str:
    device = config.getoption("--device")
    return default_device() if device == "auto" else device


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    config = metafunc.config
    cuda = _device(config) == "cuda"
    names = config.getoption("--op") or list(CASES)
    stages = 1 if config.getoption("--first-stage") else None
    pairs = [(name, stage) for name in names for stage in CASES[name].stages[:stages]]
    metafunc.parametrize(
        ("case_name", "stage"), pairs, ids=[f"{n}-{'x'.join(map(str, s))}" for n, s in pairs]
    )
    batches = config.getoption("--batch") or ([128, 256] if cuda else [8, 32])
    metafunc.parametrize("batch", batches, ids=[f"n{b}" for b in batches])
    metafunc.parametrize("layout", config.getoption("--layout") or LAYOUTS)
    dtypes = config.getoption("--dtype") or (["bfloat16", "float32"] if cuda else ["float32"])
    metafunc.parametrize("dtype", [DTYPES[d] for d in dtypes], ids=dtypes)


@pytest.fixture
def bench_device(request: pytest.FixtureRequest) -> str:
    return _device(request.config)


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--rounds")


def _results(config: pytest.Config) -> list[dict[str, Any]]:
    """What was compared, an entry a benchmark that has ended."""
    session = getattr(config, "_benchmarksession", None)
    return [b.extra_info for b in getattr(session, "benchmarks", []) if b.extra_info]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    path: Path | None = item.config.getoption("--result")
    results = _results(item.config)
    if path and results:
        write(path, content("kernels", results))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    results = _results(config)
    if not results:
        return
    machine = describe()
    table = Table(
        title=f"{machine['chip']}, {plural(machine['threads'], 'thread')}, "
        f"torch {machine['torch']}",
        caption="ratios of ours to the others, medians of interleaved rounds; 1.0 of the floor is "
        "the copy bandwidth of the same run",
    )
    for heading in ("operator", "shape", "layout", "dtype", "direction"):
        table.add_column(heading, no_wrap=True)
    for heading in ("ms", "× eager", "× compile", "× floor", "peak MB"):
        table.add_column(heading, justify="right")
    for result in results:
        r = row(result)
        table.add_row(
            result["op"],
            "×".join(map(str, (result["batch"], *result["stage"]))),
            result["layout"],
            result["dtype"],
            result["direction"],
            f"{r['ms']:.2f}",
            f"{r['to_eager']:.2f}",
            ratio(r["to_compile"]),
            f"{r['to_floor']:.2f}",
            f"{r['peak_mb']:.0f}",
        )
    Console(width=140).print(table)
