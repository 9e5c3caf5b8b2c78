"""What a module that reads the parameters of its parts may take for granted of them."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as torch_module

_PLAIN = (Tensor, nn.Parameter, FakeTensor)


def is_called_plainly(module: nn.Module) -> bool:
    """Whether calling `module` runs its class's ``forward`` and nothing else.

    Not so with hooks of its own, with hooks for all modules, after ``module.compile()``, and where
    somebody exchanged the ``forward`` of this one object.
    """
    return are_called_plainly((module,))


def are_called_plainly(modules: Iterable[nn.Module]) -> bool:
    """`is_called_plainly` of all of them, in one go: a network asks hundreds at every call."""
    for module in modules:
        own = module.__dict__  # a third of the time that attributes take
        if (
            own["_forward_pre_hooks"]
            or own["_forward_hooks"]
            or own["_backward_pre_hooks"]
            or own["_backward_hooks"]
            or "forward" in own
            or own.get("_compiled_call_impl") is not None
        ):
            return False
    return not has_global_hooks()


def has_call_hooks(module: nn.Module) -> bool:
    """Whether `module` has forward or backward hooks, before or after, of any kind."""
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
    )


def has_global_hooks() -> bool:
    """Whether hooks for all modules are registered."""
    return bool(
        torch_module._global_forward_pre_hooks
        or torch_module._global_forward_hooks
        or torch_module._global_backward_pre_hooks
        or torch_module._global_backward_hooks
    )


def are_plain(*tensors: Any) -> bool:
    """Whether all are None or tensors of PyTorch's own kind.

    A subclass, such as a quantised weight, says itself what each operation does with it. A
    FakeTensor stands for a plain one, and who counts with them wants to see what would run.
    """
    return all(tensor is None or type(tensor) in _PLAIN for tensor in tensors)


def keeps_size(conv: nn.Conv2d) -> bool:
    """Whether `conv` is plain: as many positions out as in, no groups, no holes, zeros around."""
    form = (conv.stride, conv.padding, conv.dilation, conv.padding_mode, conv.groups)
    odd = all(size % 2 == 1 for size in conv.kernel_size)
    same = tuple(size // 2 for size in conv.kernel_size)
    return odd and form == ((1, 1), same, (1, 1), "zeros", 1)


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether `conv` is a linear layer at every position: 1×1 and plain."""
    return conv.kernel_size == (1, 1) and keeps_size(conv)
