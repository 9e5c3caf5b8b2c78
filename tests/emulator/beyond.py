"""Tensors of more than 2³¹ elements: blocks at both ends of the grids and random ones run on memory
that holds zeros, and their results at the tensor's end are compared with formulas."""

import ctypes
from typing import Any

import numpy as np

from .formats import FLOAT16, Array
from .gates import CHANNEL, MIXED, SPATIAL
from .launchers import LAUNCHERS
from .library import EDGES, Emulator
from .trial import sigmoid

#: Elements at the end of a buffer that hold values.
SET = 1 << 12
BLOCKS = 48
MOST = (1 << 31) - 1 - 1024


class Sparse:
    """`count` elements that take memory where they are touched."""

    def __init__(self, emulator: Emulator, count: int, dtype: Any = np.float16) -> None:
        self.count = count
        bytes_ = count * np.dtype(dtype).itemsize
        self.at = emulator.c.reserve(bytes_ + 4096)
        if self.at is None:
            raise MemoryError(f"no address space for {bytes_} bytes")
        memory = ctypes.cast(self.at, ctypes.POINTER(ctypes.c_uint8))
        self.array = np.ctypeslib.as_array(memory, (bytes_,)).view(dtype)
        self._release = lambda: emulator.c.release(self.at, bytes_ + 4096)

    def values(self) -> Array:
        return np.asarray(self.array, np.float64)

    def free(self) -> None:
        del self.array
        self._release()


class Beyond:
    """One launcher after another; `wrong` says what was not right."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self.wrong: list[str] = []
        self.random = np.random.default_rng(0)

    def buffers(self, name: str, sizes: dict[str, int], absent: Any = ()) -> dict[str, Any]:
        """Those of a launcher, of float16; the ends of all are set to random values."""
        launcher = LAUNCHERS[name]
        made: dict[str, Any] = {}
        for key, buffer in launcher.buffers.items():
            if key in absent:
                made[key] = None
                continue
            kind = (
                np.int32 if buffer.index else np.float32 if buffer.kind == "affine" else np.float16
            )
            size = launcher.bytes(key, FLOAT16, sizes) // np.dtype(kind).itemsize
            made[key] = Sparse(self.emulator, size, kind)
            if not buffer.out and not buffer.index:
                end = made[key].array[-SET:]
                end[:] = self.random.standard_normal(end.size).astype(kind)
        return made

    def launch(self, name: str, sizes: dict[str, int], buffers: dict[str, Any]) -> None:
        launcher = LAUNCHERS[name]
        numbers = launcher.sizes(sizes)
        pointers = [None if buffer is None else buffer.at for buffer in buffers.values()]
        workspace = None
        if launcher.workspace:
            bytes_ = self.emulator.workspace(name, FLOAT16, numbers)
            workspace = Sparse(self.emulator, max(16, bytes_), np.uint8)
            pointers.append(workspace.at)
        self.emulator.configure(seed=12345, blocks=BLOCKS, sample=EDGES)
        error = self.emulator.launch(name, FLOAT16, numbers, pointers)
        if error or self.emulator.findings():
            self.wrong.append(f"{name} {sizes}: {error} {self.emulator.findings()}")
        if workspace:
            workspace.free()

    def close(self, label: str, got: Array, expected: Array, error: float = 2e-3) -> None:
        got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
        right = np.abs(got - expected) <= error * (1 + np.abs(expected))
        if not right.all():
            at = np.unravel_index(int(np.argmin(right)), right.shape)
            self.wrong.append(
                f"{label}{[int(i) for i in at]}: {got[at]}, expected {expected[at]} "
                f"({int((~right).sum())} of {right.size})"
            )

    # ---- one pass over the features ------------------------------------------------------------

    def maps(self, n: int, c: int, hw: int, last: int) -> None:
        """cbam_gate, cbam_grad_x and add_affine_relu at the features' last elements."""
        sizes = {"n": n, "c": c, "hw": hw, "channels_last": last, "relu": 0}
        count, width = n * c * hw, 64  # at least what the last block writes
        index = np.arange(count - width, count) % (c * hw)
        channel, position = (index % c, index // c) if last else (index // hw, index % hw)

        def end(buffer: Any) -> Array:
            return np.asarray(buffer.array[-width:], np.float64)

        def at(buffer: Any, places: Array, of: int) -> Array:
            return np.asarray(buffer.array[buffer.count - of + places], np.float64)

        b = self.buffers("cbam_gate", sizes)
        self.launch("cbam_gate", sizes, b)
        gate = sigmoid(at(b["channel_logits"], channel, c))
        expected = end(b["x"]) * gate * sigmoid(at(b["spatial_logits"], position, hw))
        self.close(f"cbam_gate {sizes}", end(b["out"]), expected + end(b["shortcut"]))
        self.free(b)

        b = self.buffers("cbam_grad_x", sizes)
        b["spatial_index"].array[-hw:][position] = c - 1
        b["channel_index"].array[-c:][channel] = hw - 1
        maps = b["grad_maps"].array
        maps[-2 * hw :][position] = self.random.standard_normal(width)
        self.launch("cbam_grad_x", sizes, b)
        incoming = end(b["grad"]) * sigmoid(at(b["spatial_logits"], position, hw))
        incoming += at(b["grad_maps"], position, hw) / c
        incoming += np.where(channel == c - 1, at(b["grad_maps"], position, 2 * hw), 0)
        expected = incoming * sigmoid(at(b["channel_logits"], channel, c))
        expected += at(b["grad_mean"], channel, c) / hw
        expected += np.where(position == hw - 1, at(b["grad_max"], channel, c), 0)
        self.close(f"cbam_grad_x {sizes}", end(b["grad_x"]), expected)
        self.free(b)

        b = self.buffers("add_affine_relu", sizes)
        self.launch("add_affine_relu", sizes, b)
        total = end(b["a"]) + end(b["b"])
        self.close(f"add_affine_relu, sum {sizes}", end(b["sum"]), total)
        expected = total * at(b["scale"], channel, c) + at(b["shift"], channel, c)
        self.close(f"add_affine_relu {sizes}", end(b["out"]), np.maximum(expected, 0), 4e-3)
        self.free(b)

    # ---- reductions ----------------------------------------------------------------------------

    def reductions(self, n: int, c: int, hw: int, last: int, over_positions: bool) -> None:
        """The pools and the gradients that reduce, for the last rows or columns that are kept."""
        sizes = {"n": n, "c": c, "hw": hw, "channels_last": last}
        reduced, kept = (hw, c) if over_positions else (c, hw)
        width = 64
        in_rows = bool(last) != over_positions

        def part(buffer: Any) -> Array:
            """(kept, reduced): the members of the results that are looked at."""
            if in_rows:
                return buffer.array[-width * reduced :].reshape(width, reduced)
            return buffer.array[-c * hw :].reshape(reduced, kept)[:, -width:].T

        def fill(buffer: Any) -> Array:
            values = self.random.standard_normal((width, reduced)).astype(np.float16)
            part(buffer)[...] = values
            return values.astype(np.float64)

        def end(buffer: Any) -> Array:
            return np.asarray(buffer.array[-width:], np.float64)

        pool = "channel_pool" if over_positions else "spatial_pool"
        b = self.buffers(pool, sizes, absent=("channel_logits",))
        x = fill(b["x"])
        self.launch(pool, sizes, b)
        if over_positions:
            mean, maximum = end(b["mean"]), end(b["max"])
        else:
            mean = end(b["maps"])
            maximum = np.asarray(b["maps"].array[-2 * hw : -hw][-width:], np.float64)
        self.close(f"{pool}, mean {sizes}", mean, x.mean(1))
        self.close(f"{pool}, max {sizes}", maximum, x.max(1))
        self.close(f"{pool}, index {sizes}", end(b["index"]), x.argmax(1), 0)
        self.free(b)

        name = "cbam_grad_channel" if over_positions else "cbam_grad_spatial"
        logits = "channel_logits" if over_positions else "spatial_logits"
        out = "grad_channel" if over_positions else "grad_spatial"
        absent = ("spatial_logits", "grad_maps", "spatial_index") if over_positions else ()
        b = self.buffers(name, sizes, absent=(*absent, "" if over_positions else "channel_logits"))
        x, grad = fill(b["x"]), fill(b["grad"])
        if not over_positions:
            grad = np.where(fill(b["out"]) <= 0, 0, grad)
        self.launch(name, sizes, b)
        gate = sigmoid(end(b[logits]))
        expected = (grad * x).sum(1) * gate * (1 - gate)
        self.close(f"{name} {sizes}", end(b[out]), expected, 1e-2)
        if not over_positions:
            self.close(f"{name}, masked {sizes}", part(b["masked"]), grad)
        self.free(b)

    # ---- gates and images ----------------------------------------------------------------------

    def gate(self, activation: int, outer: int, members: int, inner: int) -> None:
        sizes = {"activation": activation, "outer": outer, "members": members, "inner": inner}
        sizes["residual"] = 1
        width = 32

        def part(buffer: Any) -> Array:
            if activation == MIXED:
                return buffer.array[-width:].reshape(1, -1)
            return buffer.array[-members * inner :].reshape(members, inner)[:, -width:]

        b = self.buffers("attention_gate_backward", sizes)
        forward = {key: b[key] for key in ("logits", "trunk")}
        forward["out"] = Sparse(self.emulator, outer * members * inner)
        for key in ("grad", "logits", "trunk"):
            values = part(b[key])
            values[...] = self.random.standard_normal(values.shape).astype(np.float16)
        logits, trunk, grad = (part(b[k]).astype(np.float64) for k in ("logits", "trunk", "grad"))
        if activation == MIXED:
            mask = sigmoid(logits)
            to_logits = grad * trunk * mask * (1 - mask)
        elif activation == CHANNEL:
            scale = 1 / np.maximum(np.sqrt((logits * logits).sum(0)), 1e-12)
            mask, u = logits * scale, grad * trunk
            to_logits = scale * (u - mask * (u * mask).sum(0))
        else:
            scale = 1 / np.sqrt(logits.var(0) + 1e-5)
            z = (logits - logits.mean(0)) * scale
            mask = sigmoid(z)
            u = grad * trunk * mask * (1 - mask)
            to_logits = scale * (u - u.mean(0) - z * (u * z).mean(0))
        self.launch("attention_gate", sizes, forward)
        self.close(f"attention_gate {sizes}", part(forward["out"]), (1 + mask) * trunk)
        self.launch("attention_gate_backward", sizes, b)
        self.close(f"attention_gate_backward {sizes}", part(b["grad_logits"]), to_logits)
        self.close(
            f"attention_gate_backward, trunk {sizes}", part(b["grad_trunk"]), grad * (1 + mask)
        )
        forward["out"].free()
        self.free(b)

    def images(self, n: int, c: int, h: int, w: int, last: int) -> None:
        """Of a constant, interpolation makes the constant; a gradient of ones, sums of weights."""
        sizes = {"n": n, "c": c, "h": h, "w": w, "height": 2 * h, "width": 2 * w}
        sizes["channels_last"] = last
        b = self.buffers("upsample", sizes)
        edge = 1 << 16
        b["x"].array[-edge:] = 3
        skip = b["skip"].array[-8 * edge :]
        skip[:] = self.random.standard_normal(skip.size)
        self.launch("upsample", sizes, b)
        expected = 3 + np.asarray(b["skip"].array[-128:], np.float64)
        self.close(f"upsample {sizes}", b["out"].array[-128:], expected, 4e-3)
        self.free(b)
        b = self.buffers("upsample_backward", sizes)
        b["grad"].array[-8 * edge :] = 1
        self.launch("upsample_backward", sizes, b)
        self.close(f"upsample_backward {sizes}", b["grad_x"].array[-16:], np.full(16, 4.0), 4e-3)
        self.free(b)

    def free(self, buffers: dict[str, Any]) -> None:
        for buffer in buffers.values():
            if buffer is not None:
                buffer.free()


def wrong_results(emulator: Emulator) -> list[str]:
    """What is wrong at shapes of more than 2³¹ elements."""
    beyond = Beyond(emulator)
    for last in (0, 1):
        beyond.maps(2, 33, (1 << 26) + 8, last)  # beyond 2^32 elements
        beyond.maps(1, 2, MOST, last)
        beyond.maps(1, (1 << 22) + 2, 1025, last)  # odd rows
        beyond.maps(1, MOST, 3, last)
    beyond.reductions(1, 1 << 22, 1032, 0, True)
    beyond.reductions(1, (1 << 24) + 64, 256, 1, True)
    beyond.reductions(1, 256, (1 << 24) + 64, 0, False)
    beyond.reductions(1, 1032, 1 << 22, 1, False)
    beyond.reductions(1, 252, (1 << 24) + 64 + 1, 0, False)
    beyond.reductions(3, 1031, 1 << 20 | 1, 1, False)
    beyond.reductions(1, 1 << 23, 519, 0, True)
    for activation, outer, members, inner in [
        (MIXED, 1, (1 << 32) + 5, 1),
        (CHANNEL, (1 << 22) + 1, 1024, 1),
        (SPATIAL, (1 << 12) + 1, (1 << 20) + 8, 1),
        (CHANNEL, 2, 64, (1 << 25) + 6),
        (SPATIAL, 3, 196, (1 << 22) + 64),
        (CHANNEL, 1 << 26, 49, 1),
    ]:
        beyond.gate(activation, outer, members, inner)
    for last in (0, 1):
        beyond.images(1 << 12, 512, 16, 16, last)
        beyond.images(1, 1, 33000, 33000, last)
    return beyond.wrong
