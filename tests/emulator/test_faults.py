"""The emulator notices kernels that are wrong, says what is wrong, and counts accesses rightly.

The kernels are in faults.cu. Where a sanitizer ends the process, a launch runs in one of its own:
``python -m tests.emulator.test_faults KIND NAME``.
"""

import ctypes
import subprocess
import sys

import numpy as np
import pytest

from . import build, run, traffic
from .library import FORWARD, RANDOM, REVERSE, Emulator

pytestmark = pytest.mark.skipif(bool(build.missing()), reason=str(build.missing()))

THREADS = 64
#: Bytes of the input and of the output.
IN, OUT = 4 * THREADS, 4 * 256

#: What is said of each wrong kernel where every access is watched.
WATCHED = {
    "none": "",
    "no_barrier": "race: read after another thread's write of static shared",
    "barrier_for_some": "deadlock: 32 threads",
    "barriers_apart": "__syncthreads: threads meet at different lines",
    "lanes_leave": "deadlock",
    "left_out": "shuffle: reads a lane that takes no part",
    "uninitialised": "uninitialised read of static shared",
    "past_the_end": "out of bounds: read of 4 bytes, in of 256 bytes + 256",
    "past_shared": "out of bounds: write of 4 bytes, shared of 256 bytes + 256",
    "into_the_input": "write to the input in",
    "misaligned": "misaligned access of in",
    "misaligned_store": "st.global.v4: not 16-byte aligned",
    "blocks_in_one_place": "race: write after another thread's write of out",
    "last_block": "",
    "last_block_without_a_fence": "race: read after another thread's write of out",
    "too_many_threads": "invalid configuration",
    "too_many_rows": "invalid configuration",
    "too_much_shared": "more shared memory than allowed",
    "half_a_warp": "not whole warps",
}
#: And of some in the other builds.
SAID = [
    *(("race", name, said) for name, said in WATCHED.items()),
    ("fast", "barrier_for_some", "deadlock"),
    ("fast", "last_block", ""),
]
SANITIZED = {
    "none": "",
    "past_the_end": "heap-buffer-overflow",
    "past_shared": "heap-buffer-overflow",
    "misaligned": "misaligned address",
}


def findings(kind: str, name: str, order: int) -> tuple[str, np.ndarray]:
    """What the emulator says of a launch, and what the kernel wrote."""
    emulator = Emulator(build.faults(kind))
    memory: list[int] = []
    whole: list[ctypes.c_void_p] = []
    for size in (IN, OUT):
        whole.append(ctypes.c_void_p())
        memory.append(emulator.c.allocate(size, 0, ctypes.byref(whole[-1])))
    numbers = np.arange(THREADS, dtype=np.int32)
    ctypes.memmove(memory[0], numbers.ctypes.data, IN)
    ctypes.memset(memory[1], 0, OUT)
    if emulator.watches:
        emulator.c.watch(memory[0], IN, 1, 0, b"in")
        emulator.c.watch(memory[1], OUT, 1, 1, b"out")
    emulator.configure(order, seed=1)
    getattr(emulator.library, f"fault_{name}")(*map(ctypes.c_void_p, memory))
    out = np.frombuffer(ctypes.string_at(memory[1], OUT), np.int32)
    return emulator.findings(), out


@pytest.mark.parametrize(("kind", "name", "said"), SAID, ids=lambda value: str(value)[:30])
def test_findings(kind: str, name: str, said: str) -> None:
    found = "".join(findings(kind, name, order)[0] for order in (FORWARD, REVERSE, RANDOM))
    assert said in found if said else not found


@pytest.mark.emulate
@pytest.mark.parametrize("name", SANITIZED)
def test_findings_of_sanitizers(name: str) -> None:
    _, environment = run.command("asan")
    build.faults("asan")
    command = [sys.executable, "-m", "tests.emulator.test_faults", "asan", name]
    result = subprocess.run(command, cwd=run.ROOT, env=environment, capture_output=True, text=True)
    said = SANITIZED[name]
    assert said in result.stderr if said else not result.stderr


def test_a_missing_barrier_shows_in_another_order() -> None:
    """Without watching accesses, too: an order of threads gives other numbers."""
    right = np.roll(np.arange(THREADS, dtype=np.int32), -1)
    for order in (FORWARD, REVERSE, RANDOM):
        assert (findings("fast", "none", order)[1][:THREADS] == right).all()
    wrong = [findings("fast", "no_barrier", order)[1][:THREADS] for order in (FORWARD, REVERSE)]
    assert any((numbers != right).any() for numbers in wrong)
    assert (wrong[0] != wrong[1]).any()


def test_the_last_block_adds_up_what_all_wrote() -> None:
    for order in (FORWARD, REVERSE, RANDOM):
        _, out = findings("race", "last_block", order)
        assert out[0] == 3
        assert out[1] == 3 * np.arange(THREADS).sum()


def counted(name: str) -> traffic.Counted:
    emulator = Emulator(build.faults("race"))
    values = (ctypes.c_int32 * 4096)()
    out = (ctypes.c_int32 * 4096)()
    emulator.configure()
    emulator.c.count(1)
    # At boundaries of sectors, which ctypes does not care about.
    places = [
        ctypes.c_void_p(-(-ctypes.addressof(memory) // 128) * 128) for memory in (values, out)
    ]
    getattr(emulator.library, f"fault_{name}")(*places)
    result = traffic._counted(emulator, 0, emulator.launches()[0])
    emulator.c.count(0)
    return result


@pytest.mark.parametrize(
    ("name", "conflicts"), [("no_conflict", 1), ("two_conflicts", 2), ("all_conflict", 32)]
)
def test_bank_conflicts(name: str, conflicts: int) -> None:
    found = counted(name)
    assert found.shared_requests == 2
    assert found.wavefronts == 2 * conflicts


@pytest.mark.parametrize(
    ("name", "sectors", "width"),
    [("coalesced", 4, 4), ("every_eighth", 32, 4), ("packs_of_8", 8, 8), ("packs_of_16", 16, 16)],
)
def test_sectors_and_widths(name: str, sectors: int, width: int) -> None:
    found = counted(name)
    assert found.load.requests == 1
    assert found.load.sectors == sectors
    assert found.load.bytes == 32 * width
    assert found.load.by_width[traffic.WIDTHS.index(width)] == 32 * width


if __name__ == "__main__":
    print(findings(sys.argv[1], sys.argv[2], FORWARD)[0])
