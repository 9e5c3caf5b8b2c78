"""Fixtures of the kernel tests."""

import functools
import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _interpreter_rounds_as_gpus_do() -> Iterator[None]:
    """Triton's interpreter cuts float32 off to bfloat16; GPUs, and PyTorch, round to nearest."""
    if os.environ.get("TRITON_INTERPRET") != "1" or not find_spec("triton"):
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    cast = interpreter.InterpreterBuilder.cast_impl

    def rounding_cast(builder: Any, source: Any, to: Any) -> Any:
        if (source.dtype.scalar, to.scalar) != (tl.float32, tl.bfloat16):
            return cast(builder, source, to)
        values = torch.from_numpy(np.array(source.data)).to(torch.bfloat16)
        bits = values.view(torch.int16).numpy().view(np.uint16)
        return interpreter.TensorHandle(bits, tl.bfloat16)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpreterBuilder, "cast_impl", rounding_cast)
        yield


@pytest.fixture(scope="session", autouse=True)
def _interpreter_patches_once() -> Iterator[None]:
    """Triton's interpreter patches triton.language for a launch, and finds all of it patched again
    at each call of a function within, which takes a third of its time."""
    if os.environ.get("TRITON_INTERPRET") != "1" or not find_spec("triton"):
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    if not hasattr(interpreter, "_LangPatchScope"):  # a version that does it in another way
        yield
        return
    patch_lang = interpreter._patch_lang

    @functools.cache
    def seen_by(fn: Any) -> list[Any]:
        return [lang for lang in (tl, tl.core) if any(v is lang for v in fn.__globals__.values())]

    def patch_once(fn: Any) -> Any:
        langs = seen_by(fn)
        if langs and not any(tl.core.is_builtin(lang.load) for lang in langs):
            return interpreter._LangPatchScope()
        return patch_lang(fn)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", patch_once)
        yield


@pytest.fixture(autouse=True)
def _poisoned_allocations() -> Iterator[None]:
    """New tensors start as NaN (deterministic mode does that), so an unwritten element shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1000).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
