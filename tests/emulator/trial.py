"""One random case after another: buffers with guards, every order of threads, exact limits."""

import ctypes
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .formats import (
    COMPUTED,
    NAMES,
    SMALLEST,
    STORED,
    STORING,
    Array,
    decode,
    encode,
)
from .launchers import LAUNCHERS
from .library import Emulator

#: What outputs hold before a launch, by order of threads: no result may depend on it.
FILLS = (0xFF, 0x7B, 0x00)
MOST_FINDINGS = 5  # printed, of a launcher

Case = Callable[..., None]
#: Random cases by name, filled by `case`.
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    """Registers a random case: function(trial, shape), where the shape is None for any."""
    CASES[function.__name__] = function
    return function


class Memory:
    """A buffer of the emulator's, `offset` bytes past an aligned address."""

    def __init__(self, emulator: Emulator, values: Array, offset: int = 0) -> None:
        self.emulator, self.offset = emulator, offset
        self.dtype, self.shape, self.bytes = values.dtype, values.shape, values.nbytes
        self.original = values.tobytes()
        self._whole = ctypes.c_void_p()
        self.at = emulator.c.allocate(self.bytes, offset, ctypes.byref(self._whole))
        ctypes.memmove(self.at, self.original, self.bytes)

    def read(self) -> bytes:
        return ctypes.string_at(self.at, self.bytes)

    def values(self) -> Array:
        return np.frombuffer(self.read(), self.dtype).reshape(self.shape).copy()

    def free(self) -> bool:
        """Whether nothing was written around it."""
        return bool(self.emulator.c.free(self._whole, self.bytes, self.offset))


class Trial:
    """Runs cases of one library and counts what is wrong.

    Args:
        orders: of threads, of the three there are; the results must have the same bits in all.
    """

    def __init__(self, emulator: Emulator, seed: int, orders: int) -> None:
        self.emulator, self.orders = emulator, orders
        self.random = np.random.default_rng(seed)
        self.seed = seed
        self.cases: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()

    # ---- choices -------------------------------------------------------------------------------

    def pick(self, items: Any) -> Any:
        return items[self.random.integers(0, len(items))]

    def chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def values(self, shape: Any, dtype: int, kind: str = "plain", scale: float = 1.0) -> Array:
        """Normal values as the dtype holds them, of a kind: with NaN, infinities, ties ("plain",
        "ties", "special", "infinite", "zero" or "large")."""
        values = self.random.standard_normal(shape) * scale
        flat = values.reshape(-1)
        if kind == "ties":
            flat[:] = np.round(flat)
        elif kind == "special":
            for special in (np.nan, np.inf, -np.inf):
                flat[self.random.integers(0, flat.size, max(1, flat.size // 37))] = special
        elif kind == "infinite":
            flat[self.random.integers(0, flat.size, max(1, flat.size // 5))] = -np.inf
            if self.chance(0.3):
                flat[:] = -np.inf
        elif kind == "zero":
            flat[:] = 0.0 * np.sign(flat)
        elif kind == "large":
            flat *= 30
        return decode(encode(values, dtype), dtype)

    def offsets(self, names: Any, by: int, share: float = 0.1) -> dict[str, int]:
        """Byte offsets of buffers, most of them 0."""
        return {name: by if self.chance(share) else 0 for name in names}

    # ---- a launch ------------------------------------------------------------------------------

    def call(
        self,
        name: str,
        label: str,
        dtype: int,
        sizes: dict[str, int],
        inputs: Mapping[str, Array | None],
        *,
        absent: Any = (),
        offsets: dict[str, int] | None = None,
        most_rows: bool = True,
    ) -> dict[str, Array]:
        """What the launcher writes, as float64 values or integers, by buffer.

        Args:
            inputs: values of the buffers that it reads; None is a null pointer. They are rounded
                to the dtype, which is exact for what `values` made.
            absent: outputs that are null pointers.
            most_rows: now and then, cut the grid so that blocks walk over several samples.
        """
        launcher = LAUNCHERS[name]
        numbers = launcher.sizes(sizes)
        stored = {key: self._stored(launcher.buffers[key], v, dtype) for key, v in inputs.items()}
        self.emulator.configure()
        workspace = self.emulator.workspace(name, dtype, numbers)
        rows = int(self.pick([0, 0, 1, 2])) if most_rows else 0
        first: dict[str, Array] = {}
        for order in range(self.orders):
            memory: dict[str, Memory | None] = {}
            for key, buffer in launcher.buffers.items():
                offset = (offsets or {}).get(key, 0)
                if buffer.out and key not in absent:
                    kind = np.int32 if buffer.index else STORED[dtype]
                    kind = COMPUTED[dtype] if buffer.kind == "affine" else kind
                    raw = np.full(launcher.bytes(key, dtype, sizes), FILLS[order], np.uint8)
                    memory[key] = Memory(
                        self.emulator, raw.view(kind).reshape(launcher.shape(key, sizes)), offset
                    )
                else:
                    values = stored.get(key)
                    memory[key] = None if values is None else Memory(self.emulator, values, offset)
            if launcher.workspace:
                raw = np.full(workspace, FILLS[order], np.uint8)
                memory["workspace"] = Memory(self.emulator, raw) if workspace else None
            results = self._launch(
                name, f"{label} order {order}", dtype, numbers, memory, rows, order
            )
            for key, values in results.items():
                if values.tobytes() != first.setdefault(key, values).tobytes():
                    self.fail(name, f"{label}: {key} differs with the order of threads")
        self.cases[name] += 1
        return {
            key: self._decoded(launcher.buffers[key], values, dtype)
            for key, values in first.items()
        }

    def _decoded(self, buffer: Any, values: Array, dtype: int) -> Array:
        if buffer.index:
            return values
        return values.astype(np.float64) if buffer.kind == "affine" else decode(values, dtype)

    def _stored(self, buffer: Any, values: Array | None, dtype: int) -> Array | None:
        if values is None or buffer.index:
            return values
        return values.astype(COMPUTED[dtype]) if buffer.kind == "affine" else encode(values, dtype)

    def _launch(
        self,
        name: str,
        label: str,
        dtype: int,
        numbers: list[int],
        memory: dict[str, Memory | None],
        rows: int,
        order: int,
    ) -> dict[str, Array]:
        buffers = LAUNCHERS[name].buffers
        writable = {key for key in memory if key == "workspace" or buffers[key].out}
        watched: list[str] = []
        if self.emulator.watches:
            self.emulator.library.emulator_forget_buffers()
            for key, m in memory.items():
                if m is not None:
                    out = key in writable
                    self.emulator.c.watch(m.at, m.bytes, not out, out, key.encode())
                    watched.append(key)
        self.emulator.configure(
            order, seed=self.seed * 7919 + sum(self.cases.values()), most_rows=rows
        )
        pointers = [None if m is None else m.at for m in memory.values()]
        error = self.emulator.launch(name, dtype, numbers, pointers)
        if error or self.emulator.findings():
            self.fail(name, f"{label}: returned {error}; {self.emulator.findings()}")
        results = {}
        for key, m in memory.items():
            if m is None:
                continue
            if key not in writable:
                if m.read() != m.original:
                    self.fail(name, f"{label}: input {key} changed")
            elif key != "workspace":
                results[key] = m.values()
                if key in watched and (count := self.emulator.c.unwritten(watched.index(key))):
                    self.fail(name, f"{label}: {key}: {count} bytes not written")
            if not m.free():
                self.fail(name, f"{label}: written outside of {key}")
        return results

    # ---- what came out -------------------------------------------------------------------------

    def compare(
        self, name: str, label: str, key: str, got: Array, expected: Array, dtype: int, error: Any
    ) -> None:
        """Each element within `error` of the float64 formula, beside the rounding of storing it."""
        rounded = decode(encode(expected, dtype), dtype)  # overflows to infinity as the format does
        limit = error + STORING[dtype] * np.abs(expected) * 1.01 + SMALLEST[dtype]
        right = np.abs(got - expected) <= limit
        right |= (np.isnan(got) & np.isnan(expected)) | (got == rounded)
        if right.all():
            return
        at = np.unravel_index(int(np.argmin(right)), right.shape)
        allowed = np.broadcast_to(limit, right.shape)[at]
        self.fail(
            name,
            f"{label}: {key}{[int(i) for i in at]} is {got[at]!r}, expected {expected[at]!r} "
            f"+- {allowed:.3g} ({int((~right).sum())} of {right.size} wrong)",
        )

    def fail(self, name: str, text: str) -> None:
        self.wrong[name] += 1
        if self.wrong[name] <= MOST_FINDINGS:
            print(f"WRONG {name}: {text}", flush=True)


def described(dtype: int, sizes: dict[str, int], **others: Any) -> str:
    """A case in words, for messages."""
    return " ".join([NAMES[dtype], *(f"{k}={v}" for k, v in (sizes | others).items())])


def finite(values: Array) -> Array:
    """Magnitudes, with 0 for what is not finite."""
    return np.where(np.isfinite(values), np.abs(values), 0)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))
