"""A built library of emulated kernels, through ctypes."""

import ctypes
import re
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ORDERS = (FORWARD, REVERSE, RANDOM) = range(3)
#: Which blocks run where not all do: both ends and random ones, or ones evenly spread.
EDGES, SPREAD = range(2)

_ADDRESS = ctypes.c_void_p
_LONG = ctypes.c_int64
_INT = ctypes.c_int
_BYTES = ctypes.c_size_t


@dataclass(frozen=True)
class Launch:
    """A launch that was made, or only checked (`Emulator.configure` with dry)."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    blocks_run: int

    @property
    def blocks(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]


class Emulator:
    """The library at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = library = ctypes.CDLL(str(path))
        #: Its functions, without their prefix.
        self.c = SimpleNamespace()
        #: Whether it watches every access.
        self.watches = hasattr(library, "emulator_watch")
        signatures: dict[str, tuple[Any, list[Any]]] = {
            "set": (None, [_INT, ctypes.c_uint64, _INT, _INT, _INT, _INT]),
            "set_approximation": (None, [_INT]),
            "findings": (ctypes.c_char_p, []),
            "allocate": (_ADDRESS, [_BYTES, _BYTES, ctypes.POINTER(_ADDRESS)]),
            "free": (_INT, [_ADDRESS, _BYTES, _BYTES]),
            "reserve": (_ADDRESS, [_BYTES]),
            "release": (None, [_ADDRESS, _BYTES]),
            "launch": (None, [_INT, ctypes.POINTER(ctypes.c_uint64)]),
            "entered": (_INT, [ctypes.POINTER(ctypes.c_uint64), _INT]),
        }
        if self.watches:
            signatures |= {
                "watch": (None, [_ADDRESS, _BYTES, _INT, _INT, ctypes.c_char_p]),
                "unwritten": (ctypes.c_uint64, [_INT]),
                "count": (None, [_INT]),
                "counts": (None, [_INT, ctypes.POINTER(ctypes.c_uint64)]),
            }
        for name, (result, arguments) in signatures.items():
            function = getattr(library, f"emulator_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self.c, name, function)

    def configure(
        self,
        order: int = FORWARD,
        *,
        seed: int = 0,
        dry: bool = False,
        blocks: int = 0,
        sample: int = EDGES,
        most_rows: int = 0,
    ) -> None:
        """How launches run from now on; see runtime/settings.h. Forgets earlier findings."""
        self.library.emulator_forget_findings()
        self.library.emulator_forget_launches()
        self.c.set(order, seed, dry, blocks, sample, most_rows)

    def findings(self) -> str:
        return self.c.findings().decode().strip()

    def launch(self, name: str, dtype: int, sizes: list[int], buffers: list[int | None]) -> int:
        """Calls a launcher of launchers.cpp; returns its cudaError_t."""
        function = getattr(self.library, f"launch_{name}")
        return function(
            _INT(dtype), (_LONG * len(sizes))(*sizes), (_ADDRESS * len(buffers))(*buffers)
        )

    def workspace(self, name: str, dtype: int, sizes: list[int]) -> int:
        """Bytes of workspace that the launcher asks for; 0 where it takes none."""
        function = getattr(self.library, f"workspace_{name}", None)
        if function is None:
            return 0
        function.restype = _LONG
        return function(_INT(dtype), (_LONG * len(sizes))(*sizes))

    def launches(self) -> list[Launch]:
        """Those since `configure`."""
        found = []
        values = (ctypes.c_uint64 * 7)()
        for index in range(self.library.emulator_launches()):
            self.c.launch(index, values)
            kernel, x, y, z, threads, shared, ran = values
            name = self.kernels.get(kernel - self.base, hex(kernel))
            found.append(Launch(name, (x, y, z), threads, shared, ran))
        return found

    def entered(self) -> set[str]:
        """Names of the kernels that ran since the library was loaded."""
        addresses = (ctypes.c_uint64 * 8192)()
        count = self.c.entered(addresses, len(addresses))
        return {self.kernels.get(at - self.base, hex(at)) for at in addresses[:count]}

    @cached_property
    def base(self) -> int:
        """Where the library was loaded."""
        at = ctypes.cast(self.library.emulator_set, _ADDRESS).value or 0
        return at - self._symbols["emulator_set"]

    @cached_property
    def kernels(self) -> dict[int, str]:
        """Every kernel in the library by its address, named as in build_info()["kernels"]."""
        found = {}
        for symbol, at in self._symbols.items():
            is_kernel = "_kernel" in symbol and symbol.startswith("void ran::cuda::")
            if is_kernel and not re.search(r"emulator::|::operator\(\)|_FUN", symbol):
                found[at] = plain_name(symbol)
        return found

    @cached_property
    def _symbols(self) -> dict[str, int]:
        run = subprocess.run(["nm", "-C", self.path], capture_output=True, text=True, check=True)
        rows = [line.split(" ", 2) for line in run.stdout.splitlines() if line[:1] != " "]
        return {row[2]: int(row[0], 16) for row in rows if len(row) == 3 and row[1] in "tTwW"}


def plain_name(symbol: str) -> str:
    """A kernel's demangled name without namespaces and parameters, as setup.py writes it."""
    plain = re.sub(r"\(anonymous namespace\)::|ran::cuda::|ran::|^void ", "", symbol)
    return re.sub(r"\(\w+\)(?=\d)", "", plain).split("(")[0]
