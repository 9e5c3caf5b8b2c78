"""Grids that a GPU cannot have are refused or cut into launches, never cut short."""

import pytest

from . import build, limits
from .launchers import SIZES
from .library import Emulator

pytestmark = pytest.mark.skipif(bool(build.missing()), reason=str(build.missing()))

INVALID_CONFIGURATION = 9  # of cudaError_t
MOST_BLOCKS = (1 << 31) - 1
RUN = 1024  # elements of float32, 16 bytes for each of 256 threads
KEYS = [key for key in SIZES["images"] if key != "align_corners"]


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return Emulator(build.kernels("fast"))


def test_extreme_shapes(emulator: Emulator) -> None:
    count, wrong = limits.wrong_launches(emulator, 50)
    assert not wrong, "\n".join(wrong[:20])
    assert count > 10000


@pytest.mark.parametrize("name", ["attention_gate", "attention_gate_backward"])
@pytest.mark.parametrize("sizes", limits.BLOCKLESS, ids=str)
def test_groups_without_blocks_are_refused(
    emulator: Emulator, name: str, sizes: dict[str, int]
) -> None:
    error, _ = limits.launched(emulator, name, sizes)
    assert error == INVALID_CONFIGURATION
    assert "invalid configuration" in emulator.findings()
    # As many rows, or strips of columns, as there may be have a block each.
    if sizes["outer"] > 1:
        error, (launch,) = limits.launched(emulator, name, sizes | {"outer": MOST_BLOCKS})
        assert (error, emulator.findings(), launch.grid) == (0, "", (MOST_BLOCKS, 1, 1))


@pytest.mark.parametrize("name", ["upsample", "upsample_backward"])
@pytest.mark.parametrize("shape", limits.SLICED, ids=str)
def test_images_are_launched_whole(emulator: Emulator, name: str, shape: tuple[int, ...]) -> None:
    sizes = dict(zip(KEYS, shape, strict=True))
    error, launches = limits.launched(emulator, name, sizes)
    assert (error, emulator.findings()) == (0, "")
    assert len(launches) > 1
    n, c, h, w, height, width, last = shape
    # Of these, a block has an image in channels_last, or contiguous a run of the result.
    result = height * width if name == "upsample" else h * w
    whole, each = (n, 1) if last else (n * c * result, RUN)
    assert whole <= sum(launch.blocks for launch in launches) * each < whole + len(launches) * each


@pytest.mark.parametrize("name", ["upsample", "upsample_backward"])
def test_images_off_alignment_go_on_a_grid_further(emulator: Emulator, name: str) -> None:
    sizes = dict(zip(KEYS, (1 << 45, 2, 1, 1, 1, 1, 0), strict=True))
    error, launches = limits.launched(emulator, name, sizes, limits.UNALIGNED)
    assert (error, emulator.findings()) == (0, "")
    assert [launch.blocks for launch in launches] == [MOST_BLOCKS]
