"""Every Triton kernel compiles for every GPU generation it is meant for, on any machine."""

import importlib.util
import json
import os
from collections import Counter
from importlib.metadata import version
from typing import Any

import pytest
import torch
from filelock import FileLock

from tests.regression import measure
from tests.regression.test_cost import check

from .compile_triton import ARCHITECTURES, DTYPES, ROOT, in_a_process, narrow_offsets
from .triton_launches import launches

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `compile_triton` prints, once for all processes that test."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with FileLock(folder / "triton.lock"):
        result = folder / "triton.json"
        if not result.is_file():
            module = "tests.kernels.compile_triton"
            result.write_text(in_a_process(module, cache=ROOT / "build" / "triton"))
    return json.loads(result.read_text())


def test_every_kernel_is_compiled_and_no_other_is_listed(compiled: dict[str, Any]) -> None:
    assert set(compiled["kernels"]) == set(launches(torch.float32))
    ways = sum(len(ways) for dtype in DTYPES for ways in launches(getattr(torch, dtype)).values())
    assert len(compiled["builds"]) == ways * len(ARCHITECTURES)


def test_every_build_has_its_code(compiled: dict[str, Any]) -> None:
    for build in compiled["builds"]:
        assert build["ptx"], build
        assert build["cubin"] > 0, build


def test_offsets_are_multiplied_in_64_bits(compiled: dict[str, Any]) -> None:
    assert [line for build in compiled["builds"] for line in build["narrow"]] == []
    short = "%p = tt.get_program_id x : i32 loc(#a)\n%q = arith.muli %p, %c : i32 loc(#b)"
    assert narrow_offsets(short) == ["%q = arith.muli %p, %c : i32 loc(#b)"]


def test_resources_are_the_baselines(compiled: dict[str, Any]) -> None:
    check(measure.triton_resources(compiled["builds"]), measure.read_baseline("triton"))


#: Bytes of stack in a build by Triton 3.6 alone.
STACK_3_6 = {("norm_relu_conv_kernels.norm_relu_conv_kernel", "launch 0, sm_100, float32"): 8}


def test_no_build_spills(compiled: dict[str, Any]) -> None:
    allowed = STACK_3_6 if version("triton").startswith("3.6.") else {}
    spilling = [
        build
        for build in compiled["builds"]
        if build["STACK"] > allowed.get((build["kernel"], build["build"]), 0) or build["LOCAL"]
    ]
    assert spilling == []


#: Launches on rows of 14×14, which are packs of 4, and how many tensors they read and write.
PACKED = {
    ("attention_gate.attention_gate_groups_kernel", 0): None,
    ("attention_gate.attention_gate_groups_kernel", 1): (2, 1),  # held in registers
    ("attention_gate.attention_gate_groups_backward_kernel", 0): None,
    ("attention_gate.attention_gate_groups_backward_kernel", 1): (3, 2),
    ("upsample.upsample_kernel", 2): None,
}


def test_rows_of_packs_are_moved_in_packs_and_groups_in_registers_read_once(
    compiled: dict[str, Any],
) -> None:
    checked = 0
    for build in compiled["builds"]:
        number, _, dtype = build["build"].removeprefix("launch ").split(", ")
        if (build["kernel"], int(number)) in PACKED:
            checked += 1
            pack = str(4 * getattr(torch, dtype).itemsize)
            loads, stores = build["accesses"]["ld"], build["accesses"]["st"]
            assert set(stores) == {pack}, build
            if tensors := PACKED[build["kernel"], int(number)]:
                assert loads[pack] * tensors[1] == stores[pack] * tensors[0], build
    assert checked == len(PACKED) * len(ARCHITECTURES) * len(DTYPES)


def test_every_build_fits_the_smallest_shared_memory(compiled: dict[str, Any]) -> None:
    """99 KB a block on compute capability 8.6, 8.9 and 12.0; 163 and 227 on the large GPUs."""
    assert [build for build in compiled["builds"] if build["shared"] > 99 * 1024] == []


def test_matrix_products_are_on_tensor_cores(compiled: dict[str, Any]) -> None:
    counts: Counter[str] = Counter()
    for build in compiled["builds"]:
        number, chip, dtype = build["build"].removeprefix("launch ").split(", ")
        launch = launches(getattr(torch, dtype))[build["kernel"]][int(number)]
        kind = None
        if "PRECISION" in launch:
            # Exact products of float32 are the one kind that tensor cores have not.
            kind = {"tf32": "tf32", "ieee": None}[launch["PRECISION"]]
            kind = kind if dtype == "float32" else "f16"
        assert bool(build["products"]) == bool(kind), build
        if kind:
            assert all(kind in name for name in build["products"]), build
            counts[kind] += 1
        if kind and "norm_relu_conv" in build["kernel"]:  # each generation's own, and no older one
            own = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma"}[chip]
            assert all(name.startswith(own) for name in build["products"]), build
    assert counts == {"tf32": 5 * len(ARCHITECTURES), "f16": 14 * len(ARCHITECTURES)}
