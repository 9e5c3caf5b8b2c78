"""Compiles every Triton kernel for several GPUs, without one: ``python -m`` this module.

It must run in a process without TRITON_INTERPRET, which makes kernels that cannot be compiled.
Prints a JSON object: "kernels", those found in ran_kernels.triton, and "builds", one for each
kernel, way it is launched, GPU and data type, with what was built.

A kernel is a function under triton.jit whose name ends with ``_kernel``, and has an entry in
`triton_launches.launches`.
"""

import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from .triton_launches import launches

ROOT = Path(__file__).parents[2]
ARCHITECTURES = (80, 90, 100)
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
#: The instructions of tensor cores: of Ampere, Hopper and Blackwell.
TENSOR_CORES = r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)[\w.:]*"


def in_a_process(module: str, *arguments: str, cache: Path) -> str:
    """What ``python -m module`` prints where kernels can be compiled; `cache` keeps them.

    Compiled is what has changed: Triton finds the others by their source, launch and compiler.
    """
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def found() -> list[str]:
    """All kernels of ran_kernels.triton, as "file.function"."""
    import triton

    import ran_kernels.triton

    names = []
    for module in pkgutil.iter_modules(ran_kernels.triton.__path__):
        members = vars(importlib.import_module(f"ran_kernels.triton.{module.name}"))
        for name, member in members.items():
            kernel = isinstance(member, triton.JITFunction) and name.endswith("_kernel")
            if kernel and member.fn.__module__.endswith(f".{module.name}"):
                names.append(f"{module.name}.{name}")
    return names


def specialised(
    name: str, arguments: dict[str, Any]
) -> tuple[Any, dict[str, str], dict[str, Any], dict[tuple[int], Any]]:
    """The kernel, and what Triton makes of a launch's arguments before it compiles them.

    Args:
        name: as "file.function".
        arguments: by name, but for the options: a pointer as "*fp32", or "*fp32?" where it is not
            at a multiple of 16 bytes; else its value.

    Returns:
        The kernel; its signature; the values of what is constant; and what is a multiple of 16.
    """
    file, function = name.split(".")
    kernel = getattr(importlib.import_module(f"ran_kernels.triton.{file}"), function)
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for index, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if isinstance(value, str) and not parameter.is_constexpr:
            signature[parameter.name] = value.removesuffix("?")
            divisible = not value.endswith("?")  # as PyTorch allocates
        elif (
            parameter.is_constexpr
            or value is None
            or (value == 1 and not parameter.do_not_specialize)
        ):
            # Triton makes a None and, unless told not to, a 1 constants by itself.
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
            divisible = False
        else:
            signature[parameter.name] = "i32" if value < 2**31 else "i64"
            divisible = value % 16 == 0 and not parameter.do_not_specialize
        if divisible:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return kernel, signature, constants, attributes


def compile_kernel(name: str, launch: int, architecture: int, dtype: str) -> dict[str, Any]:
    """Compiles launch number `launch` of the kernel, and says what came of it."""
    arguments = launches(getattr(torch, dtype))[name][launch]
    for key, value in arguments.items():
        if isinstance(value, str):
            arguments[key] = value.replace("data", DTYPES[dtype])
    build = f"launch {launch}, sm_{architecture}, {dtype}"
    return {"kernel": name, "build": build, **compiled(name, arguments, architecture)}


def compiled(name: str, arguments: dict[str, Any], architecture: int) -> dict[str, Any]:
    """Compiles the kernel for a GPU, with arguments as `specialised` takes them and num_warps."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    arguments = dict(arguments)
    options = {"num_warps": arguments.pop("num_warps", 4)}
    kernel, signature, constants, attributes = specialised(name, arguments)
    built = triton.compile(
        ASTSource(kernel, signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", architecture, 32),
        options=options,
    )
    return {
        "ptx": f".target sm_{architecture}" in built.asm["ptx"],
        "cubin": len(built.asm["cubin"]),
        "shared": built.metadata.shared,
        "products": sorted(set(re.findall(TENSOR_CORES, built.asm["ptx"]))),
        "narrow": narrow_offsets(built.asm["ttir"]),
        "accesses": accesses(built.asm["ptx"]),
        **_resources(built.asm["cubin"]),
    }


def accesses(ptx: str) -> dict[str, dict[str, int]]:
    """How many loads ("ld") and stores ("st") of global memory move how many bytes a thread."""
    counts: dict[str, dict[str, int]] = {"ld": {}, "st": {}}
    pattern = r"\b(ld|st)\.global[\w.:]*?(?:\.v(\d))?\.[bfsu](\d+)\b"
    for kind, elements, bits in re.findall(pattern, ptx):
        size = str(int(elements or 1) * int(bits) // 8)
        counts[kind][size] = counts[kind].get(size, 0) + 1
    return counts


def narrow_offsets(ir: str) -> list[str]:
    """Instructions of Triton's IR that compute an offset in 32 bits where it may not fit.

    Those are products and offsets of pointers in 32 bits that depend on which program this is or
    which round of a loop: these two count up over the whole tensor.
    """
    counting: set[str] = set()
    narrow = []
    for line in ir.splitlines():
        if loop := re.search(r"scf\.for (%\w+) =", line):
            counting.add(loop[1])
        instruction = re.match(r"\s*(%\w+) = ([\w.]+) (.*?)(?: loc\(.*)?$", line)
        if not instruction:
            continue
        result, name, rest = instruction.groups()
        operands, _, types = rest.partition(" : ")
        depends = any(operand in counting for operand in re.findall(r"%\w+", operands))
        is_narrow = "i32" in re.sub(r"!tt\.ptr<i32>", "", types)
        if name == "tt.get_program_id":
            counting.add(result)
        elif depends and is_narrow and name in ("arith.muli", "tt.addptr"):
            narrow.append(line.strip())
        if depends and name not in ("arith.extsi", "arith.extui", "tt.load"):
            counting.add(result)
    return narrow


def _resources(cubin: bytes) -> dict[str, int]:
    """Registers, stack and local memory a thread. Spilled registers are on the stack."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", str(file)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    fields = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text))
    return {name: int(fields[name]) for name in ("REG", "STACK", "LOCAL")}


def main() -> None:
    kernels = found()
    jobs = [
        (name, launch, architecture, dtype)
        for dtype in DTYPES
        for name, ways in launches(getattr(torch, dtype)).items()
        for launch in range(len(ways))
        for architecture in ARCHITECTURES
        if name in kernels
    ]
    workers = min(8, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        builds = list(pool.map(compile_kernel, *zip(*jobs, strict=True)))
    json.dump({"kernels": kernels, "builds": builds}, sys.stdout)


if __name__ == "__main__":
    main()
