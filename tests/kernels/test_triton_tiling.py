"""How Triton kernels share a tensor out: all of it, once, in tiles that suit a GPU."""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("hypothesis")  # `make gpu` runs where nothing can be installed
from hypothesis import given, settings
from hypothesis import strategies as st

from .cbam_cases import NATIVE_LAYOUTS
from .harness import DTYPES

triton = pytest.importorskip("triton")
tl = triton.language
tiling = importlib.import_module("ran_kernels.triton.tiling")
tile = tiling.tile
if TYPE_CHECKING:
    from ran_kernels.triton.tiling import Tiling

TILINGS: dict[str, Callable[[Tensor], "Tiling"]] = {
    "pointwise": tiling.pointwise,
    "over_positions": tiling.over_positions,
    "merged": lambda x: tiling.over_positions(x, merge=True),
    "over_channels": tiling.over_channels,
}
sizes = st.one_of(st.integers(1, 40), st.integers(1, 10**5))


@triton.jit
def tile_of_two_by_two(  # type: ignore[no-untyped-def]
    start, offsets, inside, rows, columns,
    unit: tl.constexpr, columns_inside: tl.constexpr,  # type: ignore[name-defined]
):  # fmt: skip
    two = tl.arange(0, 2)
    row, column = tl.load(start + 1) + two, tl.load(start + 2) + two
    at, exists = tile(tl.load(start), row, column, rows, columns, unit, columns_inside)
    to = two[:, None] * 2 + two[None, :]
    tl.store(offsets + to, at)
    tl.store(inside + to, exists.to(tl.int32))


def meta(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
    x = torch.empty(shape, dtype=dtype, device="meta")
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    return x


@pytest.mark.parametrize("name", TILINGS)
@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(1, 300), sizes, sizes, sizes),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(NATIVE_LAYOUTS),
)
def test_every_element_is_in_one_tile(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, layout: str
) -> None:
    x = meta(shape, dtype, layout)
    t = TILINGS[name](x)
    assert t.samples * t.rows * t.columns == x.numel()
    assert 0 <= t.row_blocks * t.block_rows - t.rows < t.block_rows
    # The last program of a row has columns left, and none are left over after it.
    assert (t.splits - 1) * t.chunk < t.columns <= t.splits * t.chunk
    assert t.chunk % t.block_columns == 0
    tile_bytes = t.block_rows * t.block_columns * x.element_size()
    assert tile_bytes <= (tiling.POINTWISE_BYTES if name == "pointwise" else tiling.REDUCTION_BYTES)
    assert {t.block_rows.bit_count(), t.block_columns.bit_count()} == {1}
    assert t.splits <= tiling.MOST_SPLITS or name == "pointwise"
    arguments: dict[str, Any] = t.arguments()
    assert (t.columns if t.columns_inside else t.rows) % arguments["UNIT"] == 0


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(1, 300), sizes, sizes, sizes),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(NATIVE_LAYOUTS),
)
def test_every_tile_of_a_batch_is_in_one_walk(
    shape: tuple[int, ...], dtype: torch.dtype, layout: str
) -> None:
    x = meta(shape, dtype, layout)
    t = tiling.over_batch(x)
    assert t.samples * t.rows * t.columns == x.numel()
    assert 0 <= t.row_blocks * t.block_rows - t.rows < t.block_rows
    assert 0 <= t.tiles * t.block_columns - t.columns < t.block_columns
    # The last program has tiles left, and none are left over after it.
    assert (t.splits - 1) * t.chunk < t.samples * t.tiles <= t.splits * t.chunk
    assert t.block_rows * t.block_columns * x.element_size() <= tiling.REDUCTION_BYTES
    assert {t.block_rows.bit_count(), t.block_columns.bit_count()} == {1}
    arguments: dict[str, Any] = t.arguments()
    assert (t.columns if t.columns_inside else t.rows) % arguments["UNIT"] == 0
    (programs,), finish = t.finish()
    assert finish["BLOCK_SPLITS"] >= t.splits
    assert programs * finish["BLOCK"] >= t.rows
    assert finish["BLOCK"] * finish["BLOCK_SPLITS"] <= tiling.FINISH_PARTS


@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize("side", [112, 56, 28, 14, 7])
def test_networks_channels_are_shared_among_enough_programs(side: int, layout: str) -> None:
    x = meta((32, 64 * 112 // side, side, side), torch.bfloat16, layout)
    assert tiling.over_batch(x).grid[0] >= 132  # one a multiprocessor


@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize("side", [56, 28, 14, 7])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_networks_maps_are_read_in_whole_sectors(
    dtype: torch.dtype, side: int, layout: str
) -> None:
    x = meta((32, 256, side, side), dtype, layout)
    for make in TILINGS.values():
        t = make(x)
        inner = t.block_columns if t.columns_inside else t.block_rows
        assert t.columns_inside == ((layout == "contiguous") == (make is not tiling.over_channels))
        assert inner * x.element_size() >= 128


def test_few_rows_are_shared_among_programs_and_many_are_not() -> None:
    few, many = (meta((n, 256, 56, 56), torch.bfloat16, "channels_last") for n in (1, 512))
    assert tiling.over_positions(few).splits > 1
    assert tiling.over_positions(many).splits == 1


@pytest.mark.parametrize("inside", [True, False], ids=["columns_inside", "rows_inside"])
def test_offsets_past_two_to_the_31(inside: bool) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, columns = 2**30 + 2, 2**21 + 2
    # The sample's last row with the one after it, its last two columns.
    start = torch.tensor([700, rows - 1, columns - 2], device=device)
    offsets = torch.zeros(4, dtype=torch.int64, device=device)
    exists = torch.zeros(4, dtype=torch.int32, device=device)
    tile_of_two_by_two[(1,)](start, offsets, exists, rows, columns, unit=2, columns_inside=inside)
    sample, row, column = start.tolist()
    assert exists.tolist() == [1, 1, 0, 0]
    for i, c in enumerate((column, column + 1)):
        at = row * columns + c if inside else c * rows + row
        assert offsets[i] == sample * rows * columns + at
