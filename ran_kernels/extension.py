"""The compiled extension ran_kernels._C, or the reason why there is none."""

import importlib
import importlib.util
import re
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

#: ran_kernels._C, or None.
module: ModuleType | None = None
#: Why `module` is None; empty where it is not.
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


if importlib.util.find_spec("ran_kernels._C") is None:
    why_not = "the compiled extension is not part of this installation (RAN_NO_EXTENSION=1?)"
else:
    try:
        module = importlib.import_module("ran_kernels._C")
    except ImportError as error:
        # An extension that is there and does not load is a broken installation: say so at once,
        # since everything would go on working, slowly.
        why_not = why_it_does_not_load(str(error), torch.version.cuda)
        warnings.warn(f"ran_kernels: {why_not}", RuntimeWarning, stacklevel=2)

#: What is wrong with where `module` lies; empty where it is in this package's folder.
foreign = ""
if (
    module is not None
    and Path(str(module.__file__)).parent.resolve() != Path(__file__).parent.resolve()
):
    # An editable installation of another checkout leaves it to find; it may be of other sources.
    foreign = f"expected it in {Path(__file__).parent}: this one is of another checkout or build"
    warnings.warn(
        f"ran_kernels: the extension is {module.__file__}, {foreign}", RuntimeWarning, stacklevel=2
    )

_info: dict[str, Any] = module.build_info() if module is not None else {}


def build_info() -> dict[str, Any]:
    """What the extension was built with: `ran_kernels._C.build_info()`, empty without one."""
    return _info


def has_cuda() -> bool:
    """Whether the extension holds CUDA kernels."""
    return _info.get("cuda") is not None
