"""The dispatcher's library ``ran``: how an operator is registered, in one place.

Every operator ``NAME`` has two overloads with one schema: ``torch.ops.ran.NAME.default``, which
the compiled extension implements for CPU and CUDA, and ``torch.ops.ran.NAME.triton``; those of
`TRITON_ALONE` have the second only. The schemas stand in Python and not in C++ because the Triton
overloads need them where no extension was built; csrc/library/schemas.cpp has the first overload's
once more, for processes without this package.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from . import extension

P = ParamSpec("P")
R = TypeVar("R")

extension.take_schemas()
for _name in [*torch.ops.ran]:  # what Python looked up before has no tags of ours
    delattr(torch.ops.ran, _name)

LIBRARY = torch.library.Library("ran", "DEF")
#: The operators people call, in the order of their definition; derivatives are not among them.
OPERATORS: list[str] = []
#: Those that the compiled extension has kernels for, derivatives too.
NATIVE: list[str] = []
#: Those that it has none for.
TRITON_ALONE: set[str] = set()
#: Of every operator. They take any strides, each tensor its own, and a fake gives the result's from
#: those: Inductor need not copy what it lays out in another way than was traced.
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)


class Operator:
    """The operator ``ran::NAME``; ``operator[backend]`` is its "native" or "triton" overload."""

    def __init__(self, name: str, suffixes: dict[str, str]) -> None:
        packet = getattr(torch.ops.ran, name)
        self._overloads = {
            backend: getattr(packet, suffix or "default") for backend, suffix in suffixes.items()
        }

    def __getitem__(self, backend: str) -> Any:
        return self._overloads[backend]


def define(
    name: str,
    schema: str,
    *,
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    file: str | None = None,
    inference: bool = False,
    native: bool = True,
) -> Operator:
    """Registers the operator ``ran::NAME`` with its fake implementation and its derivative.

    Args:
        schema: arguments and results, as in "(Tensor x) -> Tensor".
        fake: allocates the results, with the strides the kernels give them.
        setup_context: saves what `backward` needs; see `torch.library.register_autograd`.
        backward: (backend, ctx, *grads) -> gradients. None: differentiating raises an error, as
            for the operators that are themselves derivatives.
        file: the module under ran_kernels.triton that has the function NAME; NAME unless given.
        inference: people call it, although it has no derivative.
        native: the compiled extension implements it.
    """
    if backward is not None or inference:
        OPERATORS.append(name)
    if native:
        NATIVE.append(name)
    else:
        TRITON_ALONE.add(name)
    suffixes = {"native": "", "triton": "triton"} if native else {"triton": "triton"}
    for backend, suffix in suffixes.items():
        overload = f"{name}.{suffix}" if suffix else name
        LIBRARY.define(f"{overload}{schema}", tags=TAGS)
        qualname = f"ran::{overload}"
        torch.library.register_fake(qualname, fake, lib=LIBRARY)
        torch.library.register_autograd(
            qualname,
            _derivative(name, backend, backward, inference),
            setup_context=setup_context,
            lib=LIBRARY,
        )

    def run_triton(*args: Any) -> Any:
        # Imported at the first call: Triton takes a second to import and may not be installed.
        return getattr(importlib.import_module(f"ran_kernels.triton.{file or name}"), name)(*args)

    for device in ("CPU", "CUDA"):
        LIBRARY.impl(f"{name}.triton", run_triton, device)
    return Operator(name, suffixes)


def unrecorded(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, an autograd node's own work, with operators that leave autograd out.

    Nothing is recorded within a node anyway, except for derivatives of its backward, and on the CPU
    a small operator's way through autograd takes half as long as itself. Saved tensors are asked
    for outside: what computes them again may have to be recorded.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.is_grad_enabled():
            return function(*args, **kwargs)
        with torch._C._AutoDispatchBelowAutograd():
            return function(*args, **kwargs)

    return run


def refuse_gradients(name: str, backend: str, *tensors: Tensor | None) -> None:
    """Raises RuntimeError where autograd would record the call of an operator for inference.

    At the call and not in the backward, which may be far away and knows the overload alone.
    """
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise RuntimeError(_refusal(name, backend, inference=True))


def _refusal(name: str, backend: str, *, inference: bool) -> str:
    can, wanted = (
        ("is for inference and has no derivative", "gradients")
        if inference
        else ("can be differentiated once", "higher derivatives")
    )
    return (
        f"{name}: the {backend!r} backend {can}; use ran_kernels.backend('reference') for {wanted}"
    )


def _derivative(
    name: str, backend: str, backward: Callable[..., Any] | None, inference: bool
) -> Callable[..., Any]:
    if backward is None:
        message = _refusal(name.removesuffix("_backward"), backend, inference=inference)

        def refuse(ctx: Any, *grads: Any) -> Any:
            raise RuntimeError(message)

        return refuse

    def run(ctx: Any, *grads: Any) -> Any:
        return backward(backend, ctx, *grads)

    return run
