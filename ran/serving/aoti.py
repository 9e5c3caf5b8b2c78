"""A traced network as a package that AOTInductor compiled: machine code and weights in one .pt2."""

import io
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ran_kernels.library import NATIVE

from ..errors import UserError


def require_native(names: tuple[str, ...]) -> bool:
    """Whether this package's operators are among those that a graph calls by these names.

    Raises UserError where one is none that libran_schemas.so has for a process without Python.
    """
    ours = [name for name in names if name.startswith("ran.")]
    known = {f"ran.{name}.default" for name in NATIVE}
    if foreign := [name for name in ours if name not in known]:
        raise UserError(f"expected operators of the compiled extension, found {foreign[0]}")
    return bool(ours)


def write_package(
    program: torch.export.ExportedProgram, path: Path, metadata: dict[str, str]
) -> Callable[[Tensor], Tensor]:
    """Compiles `program` for this machine's processor, writes the package and loads it again."""
    content = io.BytesIO()
    torch._inductor.aoti_compile_and_package(
        program, package_path=content, inductor_configs={"aot_inductor.metadata": metadata}
    )
    path.write_bytes(content.getbuffer())
    # As a file that is open: torch knows no name that is not UTF-8.
    with path.open("rb") as file:
        compiled = torch._inductor.aoti_load_package(file)
    return lambda x: compiled(x)
