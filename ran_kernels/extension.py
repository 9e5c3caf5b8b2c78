"""The compiled extension ran_kernels._C, or the reason why there is none."""

import importlib
import importlib.util
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

#: ran_kernels._C, or None.
module: ModuleType | None = None
#: Why `module` is None; empty where it is not.
why_not = ""

if importlib.util.find_spec("ran_kernels._C") is None:
    why_not = "the compiled extension is not part of this installation (RAN_NO_EXTENSION=1?)"
else:
    try:
        module = importlib.import_module("ran_kernels._C")
    except ImportError as error:
        # An extension that is there and does not load is a broken installation: say so at once,
        # since everything would go on working, slowly.
        why_not = f"the compiled extension does not load: {error}"
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
