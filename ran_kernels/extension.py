"""The compiled extension libran_kernels.so, or the reason why there is none.

It holds the kernels and needs no Python. libran_schemas.so beside it defines the operators where
nobody imports ran_kernels; see `library_path`.
"""

import ctypes
import functools
import importlib.util
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch

NAME, SCHEMAS = "libran_kernels.so", "libran_schemas.so"
#: Where the extension lies, or None.
path: Path | None = None
#: Why `path` is None; empty where it is not.
why_not = ""


def why_it_does_not_load(error: str, cuda: str | None) -> str:
    """What the loader's ``error`` means beside a torch for this version of CUDA, or for none.

    The stable ABI serves every torch from 2.11 on, but CUDA's own libraries go by major version.
    """
    missing = re.search(r"lib(?:torch_cuda|c10_cuda|cudart)\.so(?:\.(\d+))?: cannot open", error)
    if missing is None:
        return f"the compiled extension does not load: {error}"
    built = f"for CUDA {missing[1]}" if missing[1] else "with CUDA kernels"
    here = f"is for CUDA {cuda}" if cuda else "has no CUDA"
    again = "" if cuda else "; RAN_CUDA=0 leaves the CUDA kernels out"
    return (
        f"the compiled extension was built {built}, and this torch {here}: build it again beside "
        f"this torch, with pip install --no-build-isolation --force-reinstall --no-deps{again}"
    )


def _loaded() -> Path | None:
    """The one that this process has, if it loaded `library_path()` of some installation before."""
    try:
        ctypes.CDLL(NAME, mode=os.RTLD_NOLOAD)
    except (OSError, AttributeError):  # not loaded; not Linux
        return None
    lines = Path("/proc/self/maps").read_text().splitlines()
    return next(
        (Path(line[line.index("/") :]) for line in lines if line.endswith(f"/{NAME}")), None
    )


def _find() -> Path | None:
    # A second one would register every kernel again.
    if loaded := _loaded():
        return loaded
    here = Path(__file__).with_name(NAME)
    if here.is_file():
        return here
    # An editable installation of another checkout leaves its own to find.
    spec = importlib.util.find_spec("ran_kernels._C")
    there = spec and spec.origin and Path(spec.origin).with_name(NAME)
    return there if there and there.is_file() else None


_core: ctypes.CDLL | None = None
_info: dict[str, Any] = {}
if (_found := _find()) is None:
    why_not = "the compiled extension is not part of this installation (RAN_NO_EXTENSION=1?)"
else:
    try:
        _core = ctypes.CDLL(str(_found))
        path = _found
        _core.ran_build_info.restype = ctypes.c_char_p
        _info = json.loads(_core.ran_build_info())
    except OSError as error:
        # An extension that is there and does not load is a broken installation: say so at once,
        # since everything would go on working, slowly.
        why_not = why_it_does_not_load(str(error), torch.version.cuda)
        warnings.warn(f"ran_kernels: {why_not}", RuntimeWarning, stacklevel=2)

#: What is wrong with where the extension lies; empty where it is in this package's folder.
foreign = ""
if path is not None and path.parent.resolve() != Path(__file__).parent.resolve():
    # It may be of other sources.
    foreign = f"expected it in {Path(__file__).parent}: this one is of another checkout or build"
    warnings.warn(f"ran_kernels: the extension is {path}, {foreign}", RuntimeWarning, stacklevel=2)


def build_info() -> dict[str, Any]:
    """What the extension was built with, empty without one.

    Returns:
        compiler (str), flags (list of str), torch (version built with), torch_target (oldest
        version it runs on), cuda (toolkit version or None), cuda_home, cuda_reason (why CUDA is in
        or out), gpu_targets (list of str), and kernels: {kernel: {target: {registers, shared_bytes,
        stack_bytes, local_bytes}}}. A kernel with local_bytes or stack_bytes above zero spills.
    """
    return _info


def has_cuda() -> bool:
    """Whether the extension holds CUDA kernels."""
    return _info.get("cuda") is not None


@functools.cache
def warn_of_no_cuda() -> None:
    """Warns, once, that CUDA tensors go without the extension, unless somebody wanted that.

    At the first such tensor: while pip built the extension it showed nothing of this.
    """
    reason = _info["cuda_reason"]
    if "RAN_CUDA=0" not in reason:
        warnings.warn(
            f"ran_kernels: Triton or PyTorch runs CUDA tensors: the CUDA kernels were {reason}; "
            "`python -m ran_kernels` tells more, RAN_CUDA=0 at the build keeps this quiet",
            RuntimeWarning,
            stacklevel=2,
        )


def library_path() -> Path:
    """The library that gives a process the operators without ran_kernels.

    A program that AOTInductor compiled from a network with these operators (``ran export --aoti``)
    runs where it is loaded first, by `torch.ops.load_library` in Python and by dlopen in C++. It
    needs libtorch, no Python, and libran_kernels.so in its own folder.

    Raises:
        RuntimeError: no compiled extension was built, or it does not load; says why.
    """
    if path is None:
        raise RuntimeError(f"library_path: {why_not}")
    return path.with_name(SCHEMAS)


def take_schemas() -> None:
    """Has libran_schemas.so, where this process has loaded it or will, leave the operators to us.

    For `library.py`, before it defines them.
    """
    if _core is not None:
        _core.ran_python_defines()
