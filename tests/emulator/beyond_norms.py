"""Batch normalisation's passes over tensors of more than 2³¹ elements; see beyond.py."""

from typing import Any

import numpy as np

from .beyond import MOST, SET, Beyond
from .formats import Array
from .launchers import LAUNCHERS
from .library import Emulator
from .norms import EPS

#: Elements at the features' end, and channels, whose results are compared.
WIDTH = 64
SINGLE = np.float32


class Ends:
    """The features' last elements and what belongs to their channels; the others hold zeros."""

    def __init__(self, beyond: Beyond, name: str, sizes: dict[str, int], absent: Any = ()) -> None:
        self.beyond, self.name, self.sizes = beyond, name, sizes
        self.buffers = beyond.buffers(name, sizes, absent)
        c, hw = sizes["c"], sizes["hw"]
        index = np.arange(sizes["n"] * c * hw - SET, sizes["n"] * c * hw) % (c * hw)
        self.channel = index % c if sizes["channels_last"] else index // hw
        #: The channels that are compared, from this one on.
        self.first = max(0, c - WIDTH)
        if not LAUNCHERS[name].buffers["variance"].out:
            end = self.buffers["variance"].array[-SET:]
            end[:] = 0.5 + np.abs(end)  # so that no result overflows float16

    def of(self, name: str) -> Array:
        return np.asarray(self.buffers[name].array[-SET:], SINGLE)

    def per_channel(self, name: str) -> Array:
        """What belongs to the channel of each of the features' last elements."""
        of = self.buffers[name]
        return np.asarray(of.array[of.count - self.sizes["c"] + self.channel], SINGLE)

    def sums(self, terms: Array) -> Array:
        """Of each of the last channels."""
        found = np.zeros(self.sizes["c"] - self.first)
        mine = self.channel >= self.first
        np.add.at(found, self.channel[mine] - self.first, terms[mine].astype(np.float64))
        return found

    def got(self, name: str) -> Array:
        return np.asarray(self.buffers[name].array[self.first - self.sizes["c"] :], np.float64)

    def centred(self) -> Array:
        return self.of("x") - self.per_channel("mean")

    def invstd(self) -> Array:
        return 1 / np.sqrt(self.per_channel("variance") + SINGLE(EPS))

    def normalised(self) -> Array:
        scale = self.invstd() * self.per_channel("weight")
        return self.centred() * scale + self.per_channel("bias")

    def launch(self) -> None:
        self.beyond.launch(self.name, self.sizes, self.buffers)

    def close(self, what: str, got: Array, expected: Array, error: float = 4e-3) -> None:
        self.beyond.close(f"{self.name}, {what} {self.sizes}", got, expected, error)

    def free(self) -> None:
        self.beyond.free(self.buffers)


def _statistics(beyond: Beyond, sizes: dict[str, int], elements: int) -> None:
    ends = Ends(beyond, "batch_norm_statistics", sizes)
    ends.launch()
    total = (ends.of("x") + ends.of("addend")).astype(np.float16).astype(np.float64)
    ends.close("sum", ends.of("sum")[-WIDTH:], total[-WIDTH:], 0)
    sums = ends.sums(total)
    # Times the elements, beside which what is not 0 would be too little to be seen.
    ends.close("mean", ends.got("mean") * elements, sums)
    squares = ends.sums(np.square(total)) - sums * sums / elements
    ends.close("variance", ends.got("variance") * elements, squares)
    ends.free()


def _apply(beyond: Beyond, sizes: dict[str, int]) -> None:
    ends = Ends(beyond, "batch_norm_apply", sizes | {"relu": 1})
    ends.launch()
    expected = np.maximum(ends.normalised() + ends.of("shortcut"), 0)
    ends.close("out", ends.of("out")[-WIDTH:], expected[-WIDTH:])
    ends.free()


def _reduce(beyond: Beyond, sizes: dict[str, int], masked: bool) -> None:
    absent = () if masked else ("out", "masked")
    ends = Ends(beyond, "batch_norm_reduce", sizes | {"relu": 1}, absent)
    ends.launch()
    result = ends.of("out") if masked else ends.normalised()
    g = np.where(result <= 0, 0, ends.of("grad"))
    if masked:
        ends.close("masked", ends.of("masked")[-WIDTH:], g[-WIDTH:], 0)
    ends.close("sum_grad", ends.got("sum_grad"), ends.sums(g))
    terms = g * ends.centred() * ends.invstd()
    ends.close("sum_grad_xhat", ends.got("sum_grad_xhat"), ends.sums(terms))
    ends.free()


def _grad(beyond: Beyond, sizes: dict[str, int], elements: int) -> None:
    ends = Ends(beyond, "batch_norm_grad", sizes | {"relu": 1})
    for name in ("sum_grad", "sum_grad_xhat"):
        ends.buffers[name].array[-SET:] *= SINGLE(elements)
    ends.launch()
    g = np.where(ends.normalised() <= 0, 0, ends.of("grad"))
    first, second = (ends.per_channel(k) / elements for k in ("sum_grad", "sum_grad_xhat"))
    slope = g - (first + ends.centred() * ends.invstd() * second)
    expected = slope * ends.invstd() * ends.per_channel("weight") + ends.of("addend")
    ends.close("grad_x", ends.of("grad_x")[-WIDTH:], expected[-WIDTH:])
    ends.free()


def wrong_results(emulator: Emulator) -> list[str]:
    """What is wrong at shapes of more than 2³¹ elements.

    Of many samples there are as many as the last of a grid's blocks end with.
    """
    beyond = Beyond(emulator)
    for last in (0, 1):
        for n, c, hw in (
            *((2, 33, (1 << 26) + 8), (1, 2, MOST), (1, (1 << 22) + 2, 1025), (1, MOST, 3)),
            *((1, (1 << 25) + 8, 72), (256 * 65535, 16, 9), (3, 5, 1 << 28)),
        ):
            sizes = {"n": n, "c": c, "hw": hw, "channels_last": last}
            _statistics(beyond, sizes, n * hw)
            _apply(beyond, sizes)
            for masked in (True, False):
                _reduce(beyond, sizes, masked)
            _grad(beyond, sizes, n * hw)
    return beyond.wrong
