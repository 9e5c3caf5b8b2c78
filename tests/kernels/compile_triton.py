"""Compiles every Triton kernel for several GPUs, without one: ``python -m`` this module.

It must run in a process without TRITON_INTERPRET, which makes kernels that cannot be compiled.
Prints a JSON object: "kernels", those found in ran_kernels.triton, and "builds", one for each
kernel, way it is launched, GPU and data type, with what was built.

A kernel is a function under triton.jit whose name ends with ``_kernel``, and has an entry in
`launches`, under "file.function": the arguments of one or more of its launches.
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

ARCHITECTURES = (80, 90, 100)
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
#: The instructions of tensor cores: of Ampere, Hopper and Blackwell.
TENSOR_CORES = r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)[\w.:]*"
#: Pointers to the data type at hand, to the type it is computed in, and to indices.
DATA, SUM, INDEX = "*data", "*fp32", "*i32"


def upsample_launches() -> dict[str, list[dict[str, Any]]]:
    """Of upsample's kernels: 28×28 to 56×56 in both layouts, 7×7 to 14×14; back along columns and
    along rows, and to 14×14 along columns."""
    scales = {"over_y": 27, "under_y": 55, "over_x": 27, "under_x": 55}
    sizes = {"h": 28, "w": 28, "height": 56, "width": 56, "channels": 256, "positions": 3136}
    small = {"h": 7, "w": 7, "height": 14, "width": 14, "channels": 1024, "positions": 196}
    small |= {"over_y": 6, "under_y": 13, "over_x": 6, "under_x": 13}
    forward = {"x": DATA, "skip": DATA, "out": DATA, **sizes, **scales, "ALIGN": True, "UNIT": 16}
    axis = {"source_size": 28, "target_size": 56, "over": 27, "under": 55, "STEPS": 7}
    return {
        "upsample.upsample_kernel": [
            {**forward, "ADD": True, "CHANNELS_LAST": False, "POSITIONS": 128, "CHANNELS": 8},
            {**forward, "ADD": False, "CHANNELS_LAST": True, "POSITIONS": 8, "CHANNELS": 128},
            {**forward, **small, "ADD": True, "CHANNELS_LAST": False}
            | {"UNIT": 4, "POSITIONS": 128, "CHANNELS": 8},
        ],
        "upsample.upsample_backward_kernel": [
            {"grad": DATA, "grad_x": SUM, "rows": 7168, "inner": 56, **axis, "ALIGN": True}
            | {"UNIT": 8, "ROWS": 16, "INNER": 64},
            {"grad": SUM, "grad_x": DATA, "rows": 200704, "inner": 1, **axis, "ALIGN": False}
            | {"UNIT": 1, "ROWS": 1024, "INNER": 1},
            {"grad": DATA, "grad_x": SUM, "rows": 229376, "inner": 28, "source_size": 14}
            | {"target_size": 28, "over": 13, "under": 27, "STEPS": 6, "ALIGN": True}
            | {"UNIT": 4, "ROWS": 32, "INNER": 32},
        ],
    }


def conv_gate_launches(dtype: torch.dtype) -> dict[str, list[dict[str, Any]]]:
    """Of a large tile in both layouts, and of a small one in the dtype's other kind of product."""
    from ran_kernels.triton import conv_gate

    def launch(shape: tuple[int, ...], layout: torch.memory_format, **given: Any) -> dict[str, Any]:
        x = torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=layout)
        operands = dict.fromkeys(("left", "right", "bias", "trunk", "out"), DATA)
        _, planned = conv_gate.plan(x, x)
        return operands | planned | {"RESIDUAL": True, "WIDEN": False} | given

    low = dtype != torch.float32
    first = {"PRECISION": "ieee" if low else "tf32"}
    # float16 beside bfloat16, exact float32 beside TF32. Rows of 14×14 are no multiple of 16.
    other = dict.fromkeys(("left", "right", "trunk", "out"), "*fp16") if low else {}
    return {
        "conv_gate.conv_gate_kernel": [
            launch((32, 256, 56, 56), torch.channels_last, **first),
            launch((32, 1024, 14, 14), torch.contiguous_format, **first),
            launch((1, 512, 14, 14), torch.channels_last, **first, bias=None),
            launch(
                (1, 1024, 14, 14), torch.contiguous_format, PRECISION="ieee", bias=None, **other
            ),
        ],
    }


def batch_norm_launches(dtype: torch.dtype) -> dict[str, list[dict[str, Any]]]:
    """Of each pass with all terms and with as few as there can be, in one stage and in two.

    The last launch is of the dtype's other: float64 beside float32, float16 beside bfloat16.
    """
    from ran_kernels.triton import tiling

    def data(*names: str) -> dict[str, Any]:
        return dict.fromkeys(names, DATA)

    def sums(*names: str) -> dict[str, Any]:
        return dict.fromkeys(names, SUM)

    small = torch.empty((1, 512, 7, 7), dtype=dtype, device="meta")
    large = torch.empty((128, 256, 56, 56), dtype=dtype, device="meta")
    large = large.contiguous(memory_format=torch.channels_last)
    low = dtype != torch.float32
    other, accumulator = ("*fp16", SUM) if low else ("*fp64", "*fp64")
    planar = large.contiguous().to(torch.float16 if low else torch.float64)
    one, many, rows = (tiling.over_batch(x) for x in (small, large, planar))
    assert one.splits == 1 < min(many.splits, rows.splits)
    numbers, others = (
        {"EPS": 1e-5, "VANISHES": vanishes}
        for vanishes in ((2.0**-134, 2.0**-25) if low else (0.0, 0.0))
    )
    final = {**one.arguments(), "FINAL": True, **numbers}
    shared = {**many.arguments(), "FINAL": False, **numbers}
    strided = {**rows.arguments(), "FINAL": False, **others}
    maps = [
        tiling.pointwise(x, tiling.REDUCTION_BYTES).arguments() | of
        for x, of in ((small, numbers), (large, numbers), (planar, others))
    ]
    channels = sums("mean", "variance", "weight", "bias")
    plain = {"mean": accumulator, "variance": accumulator, "weight": None, "bias": None}
    results = sums("sum_grad", "sum_grad_xhat")
    finish = many.finish()[1]
    return {
        "batch_norm_kernels.batch_norm_statistics_kernel": [
            {**data("x", "addend", "sum"), **sums("mean", "variance"), **final},
            {**data("x", "addend", "sum"), "mean": "*fp64", "variance": SUM, **shared},
            {"x": other, "addend": None, "sum": None, "mean": "*fp64", "variance": accumulator}
            | strided,
        ],
        "batch_norm_kernels.batch_norm_statistics_finish_kernel": [
            {"means": "*fp64", **dict.fromkeys(("squares", "mean", "variance"), accumulator)}
            | many.walk()
            | finish
        ],
        "batch_norm_kernels.batch_norm_apply_kernel": [
            {**data("x", "shortcut", "out"), **channels, "RELU": True, **maps[0]},
            {**data("x", "out"), "shortcut": None, **channels, "RELU": True, **maps[1]},
            {"x": other, "out": other, "shortcut": None, **plain, "RELU": False, **maps[2]},
        ],
        "batch_norm_kernels.batch_norm_reduce_kernel": [
            {**data("grad", "x", "out", "masked"), **channels, **results, "RELU": True, **final},
            {**data("grad", "x"), "out": None, "masked": None, **channels, **results}
            | {"RELU": True, **shared},
            {"grad": other, "x": other, "out": None, "masked": None, **plain}
            | {**dict.fromkeys(results, accumulator), "RELU": False, **strided},
        ],
        "batch_norm_kernels.batch_norm_reduce_finish_kernel": [
            {**dict.fromkeys(("totals", "dots", "variance", *results), accumulator)}
            | {"EPS": 1e-5, **finish}
        ],
        "batch_norm_kernels.batch_norm_grad_kernel": [
            {**data("grad", "x", "addend", "grad_x"), **channels, **results}
            | {"elements": 49, "RELU": True, **maps[0]},
            {**data("grad", "x", "grad_x"), "addend": None, **channels, **results}
            | {"elements": 128 * 56 * 56, "RELU": True, **maps[1]},
            {"grad": other, "x": other, "grad_x": other, "addend": None, **plain}
            | {"sum_grad": None, "sum_grad_xhat": None, "elements": 1, "RELU": False, **maps[2]},
        ],
    }


def launches(dtype: torch.dtype) -> dict[str, list[dict[str, Any]]]:
    """Arguments by name: a pointer above, a size as an int, what is constexpr as its value."""
    from ran_kernels.triton import attention_gate, tiling

    def data(*names: str) -> dict[str, Any]:
        return dict.fromkeys(names, DATA)

    # Rows whose length is no multiple of 16, one program each; channels_last, rows in shares.
    large = torch.empty((1024, 1024, 14, 14), dtype=dtype, device="meta")
    few = torch.empty((1, 2048, 56, 56), dtype=dtype, device="meta")
    few = few.contiguous(memory_format=torch.channels_last)

    def walks(tiled: Any, final: dict[str, Any], shared: dict[str, Any]) -> list[dict[str, Any]]:
        one, many = tiled(large), tiled(few)
        assert one.splits == 1 < many.splits
        return [
            {**final, "FINAL": True, **one.arguments()},
            {**shared, "FINAL": False, **many.arguments()},
        ]

    both = [tiling.pointwise(x).arguments() for x in (large, few)]
    gates = data("channel_logits", "spatial_logits")
    maps = {"grad_maps": DATA, "spatial_index": INDEX}
    pooled = {**data("grad_mean", "grad_max"), "channel_index": INDEX}
    plain = dict.fromkeys(gates | maps | pooled)
    stride = {"split_stride": 256 * 196}
    pool = {"x": DATA, "index": INDEX, "sample_stride": 2 * 196, **stride}
    grad_spatial = {**data("grad", "x", "masked"), **gates, **stride}
    grad_channel = {**data("grad", "x"), **gates, **maps, **stride}
    finish = {"count": 8 * 196, "splits": 32, "BLOCK_SPLITS": 32}
    gate = {"n": 2**20, "RESIDUAL": True, "BLOCK": attention_gate.BLOCK}
    # "channel" over columns, "spatial" along rows and over columns; short rows in packs of 2, held,
    # of which Triton 3.6 once refused some.
    groups = [
        {"members": 1024, "inner": 196, "groups": 196, "RESIDUAL": True, "ACTIVATION": 1},
        {"members": 196, "inner": 1, "groups": 1024, "RESIDUAL": True, "ACTIVATION": 2},
        {"members": 196, "inner": 1024, "groups": 32768, "RESIDUAL": True, "ACTIVATION": 2},
        {"members": 6, "inner": 1, "groups": 4096, "RESIDUAL": True, "ACTIVATION": 1},
        {"members": 6, "inner": 1, "groups": 4096, "RESIDUAL": True, "ACTIVATION": 2},
    ]
    for launch in groups:
        launch.update(
            attention_gate._tile_sizes(launch["members"], launch["inner"], launch["groups"])
        )
    assert {"UNIT": 2, "GROUPS": 128, "HELD": True}.items() <= groups[-1].items()
    return {
        "attention_gate.attention_gate_kernel": [{**data("logits", "trunk", "out"), **gate}],
        "attention_gate.attention_gate_backward_kernel": [
            {**data("grad", "logits", "trunk", "grad_logits", "grad_trunk"), **gate}
        ],
        "attention_gate.attention_gate_groups_kernel": [
            {**data("logits", "trunk", "out"), **launch} for launch in groups
        ],
        "attention_gate.attention_gate_groups_backward_kernel": [
            {**data("grad", "logits", "trunk", "grad_logits", "grad_trunk"), **launch}
            for launch in groups
        ],
        "add_affine_relu.add_affine_relu_kernel": [
            {**data("a", "b", "sum", "out"), "scale": SUM, "shift": SUM, **both[0]},
            {"a": DATA, "b": None, "scale": SUM, "shift": SUM, "sum": None, "out": DATA, **both[1]},
        ],
        **batch_norm_launches(dtype),
        **upsample_launches(),
        **conv_gate_launches(dtype),
        "pooling.pool_kernel": walks(
            tiling.over_channels,
            pool | data("mean", "maximum", "column_logits"),
            pool | {"mean": SUM, "maximum": SUM, "column_logits": None},
        ),
        "pooling.pool_finish_kernel": [
            {
                "totals": SUM,
                "maxima": SUM,
                "indices": INDEX,
                "index": INDEX,
                **data("mean", "maximum"),
                **finish,
                "sample_stride": 2 * 196,
                "rows": 196,
                "columns": 1024,
                "BLOCK": tiling.FINISH_ROWS,
            }
        ],
        "cbam_gate.cbam_gate_kernel": [
            {**data("x", "out", "shortcut"), **gates, "RELU": True, **tiled} for tiled in both
        ],
        "cbam_backward.cbam_grad_spatial_kernel": walks(
            tiling.over_channels,
            grad_spatial | data("out", "grad_spatial"),
            grad_spatial | {"out": None, "grad_spatial": SUM},
        ),
        "cbam_backward.cbam_grad_channel_kernel": walks(
            tiling.over_positions,
            grad_channel | {"grad_channel": DATA},
            grad_channel | {"grad": None, "grad_channel": SUM},
        ),
        "cbam_backward.cbam_grad_finish_kernel": [
            {
                "totals": SUM,
                **data("logits", "grad_logits"),
                **finish,
                "BLOCK": tiling.FINISH_ROWS,
            }
        ],
        "cbam_backward.cbam_grad_x_kernel": [
            {**data("grad", "grad_x"), **gates, **maps, **pooled, **both[0]},
            {**data("grad", "grad_x"), **gates, **maps, **pooled, **both[1]},
            {**plain, **data("grad", "grad_x"), **both[0]},
        ],
    }


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
        elif parameter.is_constexpr or value is None or value == 1:
            # Triton makes a None and a 1 constants by itself, whatever the parameter is.
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
            divisible = False
        else:
            signature[parameter.name] = "i32" if value < 2**31 else "i64"
            divisible = value % 16 == 0
        if divisible:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return kernel, signature, constants, attributes


def compile_kernel(name: str, launch: int, architecture: int, dtype: str) -> dict[str, Any]:
    """Compiles launch number `launch` of the kernel, and says what came of it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    arguments = launches(getattr(torch, dtype))[name][launch]
    options = {"num_warps": arguments.pop("num_warps", 4)}
    for key, value in arguments.items():
        if isinstance(value, str):
            arguments[key] = value.replace("data", DTYPES[dtype])
    kernel, signature, constants, attributes = specialised(name, arguments)
    built = triton.compile(
        ASTSource(kernel, signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", architecture, 32),
        options=options,
    )
    return {
        "kernel": name,
        "build": f"launch {launch}, sm_{architecture}, {dtype}",
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
