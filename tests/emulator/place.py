"""The operators on emulated CUDA kernels: what the place ``native-emulated`` of the tests runs.

Within `emulated`, the operators of ``torch.ops.ran`` on tensors of the CPU are those of the
emulated extension: schemas, fake implementations, derivatives and all of ran_kernels stay what they
are. Each call runs in two orders of threads and blocks, which must give the same bits, and leaves
its inputs alone; a deadlock, a wrong launch or an error code is an error of the operator.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import build
from .library import FORWARD, RANDOM, Emulator

_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


@functools.cache
def emulator() -> Emulator:
    """The library under the extension, which is built and loaded at the first call."""
    extension = build.extension()
    library = torch.library.Library("ran_emulated", "DEF")
    for name in operators():
        schema = getattr(torch.ops.ran, name).default._schema
        library.define(str(schema).removeprefix("ran::"))
    _KEPT.append(library)
    torch.ops.load_library(str(extension))
    return Emulator(build.kernels("fast"))


# A library of the dispatcher's lives as long as its Python object.
_KEPT: list[Any] = []


@functools.cache
def operators() -> tuple[str, ...]:
    """The operators that the compiled extension implements."""
    import ran_kernels  # noqa: F401 - defines them
    from ran_kernels.library import NATIVE

    return tuple(sorted(NATIVE))


@contextlib.contextmanager
def emulated() -> Iterator[None]:
    """Within the ``with`` block, native operators on the CPU run on emulated CUDA kernels."""
    emulator()
    library = torch.library.Library("ran", "IMPL")
    try:
        for name in operators():
            library.impl(name, functools.partial(_run, name), "CPU")
        yield
    finally:
        library._destroy()


def _run(name: str, *arguments: Any) -> Any:
    operator = getattr(torch.ops.ran_emulated, name)
    inputs = [value for value in arguments if isinstance(value, Tensor)]
    before = [value.clone() for value in inputs]
    results = []
    for order in (FORWARD, RANDOM):
        emulator().configure(order, seed=1)
        results.append(operator(*arguments))
    first, second = (_tensors(result) for result in results)
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        if a.stride() != b.stride() or not _same_bits(a, b):
            raise AssertionError(f"{name}: result {index} depends on the order of threads")
    for index, (a, b) in enumerate(zip(inputs, before, strict=True)):
        if not _same_bits(a, b):
            raise AssertionError(f"{name}: tensor {index} of the arguments was written")
    return results[0]


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    bits = _BITS[a.element_size()]
    return torch.equal(a.view(bits), b.view(bits))
