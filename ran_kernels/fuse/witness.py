"""What the functions of a forward do besides calling PyTorch, seen while it is followed.

What a function may name is listed, and all else refused: whatever may be another thing at the next
call would not be asked again.
"""

import builtins
import dis
import types
from collections.abc import Iterator
from enum import Enum
from typing import Any

import torch
from torch import fx, nn

#: What stays as it is, once it has its name. Functions are looked at when they are called.
_LASTING = (types.FunctionType, types.ModuleType, types.MethodDescriptorType, type, Enum,
            torch._ops.OpOverload, torch._ops.OpOverloadPacket, torch.dtype, torch.layout,
            torch.memory_format, type(vars(torch)["relu"].__self__))  # fmt: skip
#: Of Python's own: what they say of a stand-in they do not say of a tensor, or they write.
_TELLING = ("type", "id", "vars", "dir", "globals", "locals", "setattr", "delattr", "open")
_BOUND = (types.MethodType, types.BuiltinFunctionType)
#: Python 3.10 has the first two, later versions the others.
_GUARDS = ("SETUP_FINALLY", "SETUP_WITH", "PUSH_EXC_INFO", "BEFORE_WITH")


class Witness:
    """For `sys.setprofile`: adds to `found` what functions do that leaves no node in a graph.

    Args:
        caller: of the function that is followed. It and what it calls is looked at, outside torch.
    """

    def __init__(self, found: list[str], caller: types.CodeType) -> None:
        self.found = found
        self.frames = {caller}
        self.cells: set[str] = set()  # the variables that the forward's own functions share

    def __call__(self, frame: types.FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "c_call" and code in self.frames:
            owner = getattr(argument, "__self__", None)
            if argument is print:
                self.found.append("its forward prints")
            elif isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
                self.found.append("its forward has a derivative of its own")
        if event != "call":
            return
        where = str(frame.f_globals.get("__name__", ""))
        if where == "torch.utils.checkpoint":
            self.found.append("its forward checkpoints")
        elif (where, code.co_name) == ("torch.autograd.function", "apply"):
            self.found.append("its forward has a derivative of its own")
        elif f"{where}.".startswith(("torch.", "ran_kernels.fuse.")) or frame.f_back is None:
            return
        elif frame.f_back.f_code in self.frames:
            self.frames.add(code)
            self.found.extend(self._unusual(frame))

    def _unusual(self, frame: types.FrameType) -> Iterator[str]:
        code = frame.f_code
        self.cells.update(code.co_cellvars)
        for name in set(code.co_freevars) - self.cells:
            if not isinstance(frame.f_locals.get(name), (*_LASTING, nn.Module, fx.Proxy)):
                yield f"its forward uses the variable {name} of a function around it"
        steps = list(dis.get_instructions(code))
        for i, step in enumerate(steps):
            name = str(step.argval)
            if step.opname in _GUARDS:
                yield "its forward enters a context or catches errors"
            elif step.opname in ("STORE_ATTR", "DELETE_ATTR"):
                yield f"its forward sets the attribute {name}"
            elif step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                yield f"its forward uses the global variable {name}"
            elif step.opname in ("LOAD_ATTR", "LOAD_METHOD") and name in ("__class__", "__dict__"):
                yield f"its forward uses {name}"
            elif step.opname == "LOAD_GLOBAL":
                held = frame.f_globals.get(name, getattr(builtins, name, None))
                if name in _TELLING and held is getattr(builtins, name):
                    yield f"its forward uses {name}()"
                for part in steps[i + 1 :]:
                    if part.opname not in ("LOAD_ATTR", "LOAD_METHOD") or not _is_room(held):
                        break
                    held, name = getattr(held, part.argval, None), f"{name}.{part.argval}"
                # A function of an object is as lasting as the object.
                owner = held.__self__ if isinstance(held, _BOUND) else held
                if not isinstance(owner, _LASTING):
                    yield f"its forward uses the global variable {name}"


def _is_room(held: Any) -> bool:
    """Whether what is asked of `held` is a variable as global as `held` is."""
    return isinstance(held, (types.ModuleType, types.FunctionType, type))
