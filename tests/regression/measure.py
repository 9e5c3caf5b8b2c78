"""What the kernels cost, in figures that do not depend on the machine's load.

``python -m tests.regression.measure`` writes them to baseline.json, which the tests compare with;
names of parts ("cpu", "cuda", "triton", "traffic", "networks") renew those alone. Do that in the
commit that changes a kernel on purpose, and say in its message what it bought.
"""

import argparse
import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ran_kernels import extension
from tests.emulator import build

from . import BASELINE, traffic

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
#: Share by which a figure may differ from its baseline.
TOLERANCE = 0.05
#: The GPUs whose figures are in the baseline, of those that a build may hold code for.
CHIPS = ("sm_80", "sm_90")


def cpu_objects() -> list[Path]:
    """The object files of the CPU kernels, where the extension was built in this tree."""
    return sorted(ROOT.glob("build/temp.*/csrc/cpu/*.o"))


def missing_for_instructions() -> str | None:
    """Why instructions cannot be counted here, or None."""
    if platform.machine() != "x86_64":
        return f"the baseline is x86_64's, this is {platform.machine()}"
    for tool in ("valgrind", "g++"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    return None if cpu_objects() else "the extension was not built in this tree"


def instructions() -> dict[str, int]:
    """Instructions of every CPU kernel on a fixed input, as valgrind's callgrind counts them."""
    with tempfile.TemporaryDirectory() as folder:
        driver = Path(folder, "driver")
        sources = [str(HERE / "driver.cpp"), *map(str, cpu_objects())]
        subprocess.run(["g++", "-std=c++17", "-O1", *sources, "-o", str(driver)], check=True)
        names = subprocess.run([driver], check=True, capture_output=True, text=True).stdout.split()
        command: list[str | Path] = [
            *("valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/counts"),
            *("--collect-atstart=no", "--toggle-collect=measured", "--dump-after=measured"),
            str(driver),
            *names,
        ]
        subprocess.run(command, check=True, capture_output=True)
        counts = [
            int(re.search(r"^totals: (\d+)", path.read_text(), re.MULTILINE)[1])  # type: ignore[index]
            for path in sorted(Path(folder).glob("counts.*"), key=lambda p: int(p.suffix[1:]))
        ]
    return dict(zip(names, counts, strict=True))


def cuda_resources() -> dict[str, dict[str, int]]:
    """Registers, shared memory, stack and local memory of every CUDA kernel, by name and GPU."""
    return {
        f"{kernel}, {target}": used
        for kernel, targets in extension.build_info()["kernels"].items()
        for target, used in targets.items()
        if target in CHIPS
    }


def triton_resources(builds: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Registers, stack and bytes of code of every Triton kernel, from ``compile_triton``."""
    return {
        f"{build['kernel']}, {build['build']}": {
            "registers": build["REG"],
            "stack_bytes": build["STACK"],
            "code_bytes": build["cubin"],
        }
        for build in builds
        if any(chip in build["build"] for chip in CHIPS)
    }


def versions() -> dict[str, str | None]:
    """What made the code: another compiler makes other code, which nobody changed."""
    info = extension.build_info()
    return {
        "cpu": info.get("compiler"),
        "cuda": info.get("cuda"),
        "triton": importlib.metadata.version("triton"),
        "traffic": build.compiler_version() if build.compiler() else None,
        # Its minor version: what the plain operators are made of may change with it.
        "networks": "torch " + ".".join(torch.__version__.split(".")[:2]),
    }


def read_baseline(part: str) -> dict[str, Any]:
    """The baseline's figures of a part. Skips the test at another compiler's."""
    baseline = json.loads(BASELINE.read_text())
    then, now = baseline["versions"][part], versions()[part]
    if then != now:
        pytest.skip(f"the baseline is of {then}, this is {now}")
    return baseline[part]


def compiled_triton() -> dict[str, dict[str, int]]:
    """`triton_resources` of all kernels, compiled now."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.kernels.compile_triton"]
    compiled = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return triton_resources(json.loads(compiled)["builds"])


def memory_traffic() -> dict[str, dict[str, float]]:
    """What the networks' operators cost in memory traffic; see traffic.py."""
    resources = json.loads(BASELINE.read_text())["cuda"]
    return {row.name: traffic.counted(row, resources) for row in traffic.rows()}


def networks() -> dict[str, dict[str, int]]:
    """Bytes that a training step moves, plain and ours, by network."""
    from bench.networks.traffic import NETWORKS

    return {name: steps(name) for name in NETWORKS}


def steps(network: str) -> dict[str, int]:
    """Those of one network, by variant, at batch 128 in bfloat16."""
    # Here, as the kernels' tests read this file beside an installed package, where no bench is.
    from bench.networks.traffic import measure

    return measure(network, 128, None, torch.bfloat16, inductor=False)["bytes"]


#: In this order: the traffic's waves of blocks depend on the registers.
PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "cpu": instructions,
    "cuda": cuda_resources,
    "triton": compiled_triton,
    "traffic": memory_traffic,
    "networks": networks,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    names = parser.parse_args().parts or list(PARTS)
    if unknown := set(names) - set(PARTS):
        parser.error(f"PART: expected some of {', '.join(PARTS)}, got {', '.join(unknown)}")
    if "cpu" in names and (missing := missing_for_instructions()):
        sys.exit(f"measure: {missing}")
    for name in (name for name in PARTS if name in names):
        baseline = json.loads(BASELINE.read_text())
        baseline[name] = PARTS[name]()
        baseline["versions"][name] = versions()[name]
        BASELINE.write_text(in_lines(baseline))


def in_lines(figures: dict[str, dict[str, Any]]) -> str:
    """A line each, so that a change of the baseline can be read."""
    parts = []
    for part, entries in figures.items():
        lines = [
            f"  {json.dumps(name, ensure_ascii=False)}: {json.dumps(entries[name])}"
            for name in sorted(entries)
        ]
        parts.append(f" {json.dumps(part)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
