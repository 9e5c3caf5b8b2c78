"""Which device runs, and in which precision."""

import torch

from .errors import UserError

#: What ``--precision`` takes beside "auto", in Lightning's names.
PRECISIONS = ("32", "bf16-mixed", "16-mixed", "64")


def choose_device(name: str = "auto") -> torch.device:
    """The device called ``name``: auto (a GPU where there is one), cpu, cuda or cuda:N.

    Raises:
        UserError: no such device, or this machine has none.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    index = device.index or 0
    if index >= count:
        raise UserError(f"device: expected one of {count} CUDA devices here, got {name!r}")
    return torch.device("cuda", index)


def choose_precision(name: str, device: torch.device) -> str:
    """Lightning's name for the precision called ``name``; auto is bfloat16 on a GPU that has it.

    Raises:
        UserError: no such precision, or ``device`` lacks it.
    """
    if name == "auto":
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if has_bf16 else "32-true"
    if name not in PRECISIONS:
        raise UserError(f"precision: expected auto, {', '.join(PRECISIONS)}, got {name!r}")
    if name == "16-mixed" and device.type == "cpu":
        raise UserError("precision: 16-mixed needs a CUDA device; the CPU takes 32 or bf16-mixed")
    return name if name.endswith("-mixed") else f"{name}-true"
