"""What the functions of a forward do besides calling PyTorch, seen while it is followed."""

import dis
from types import CodeType, FrameType
from typing import Any

import torch


class Witness:
    """For `sys.setprofile`: adds to `found` what functions do that leaves no node in a graph.

    Args:
        caller: of the function that is followed. It and what it calls is looked at, outside torch.
    """

    def __init__(self, found: list[str], caller: CodeType) -> None:
        self.found = found
        self.frames = {caller}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
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
        elif frame.f_back is not None and frame.f_back.f_code in self.frames:
            if code.co_name == "__enter__":
                self.found.append("its forward enters a context")
            elif not where.startswith(("torch.", "ran_kernels.fuse")):
                self.frames.add(code)
                self._look_at(code, frame.f_globals)

    def _look_at(self, code: CodeType, variables: dict[str, Any]) -> None:
        for step in dis.get_instructions(code):
            held = isinstance(variables.get(str(step.argval)), (list, dict, set))
            if step.opname == "STORE_GLOBAL" or (step.opname == "LOAD_GLOBAL" and held):
                self.found.append(f"its forward uses the global variable {step.argval}")
