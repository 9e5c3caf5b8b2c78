"""Networks small enough to save and load in no time, and what saving and loading are held to."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ran
from ran.data import Preprocessing
from ran.errors import UserError

#: One stage with one attention module.
TINY: dict[str, Any] = {
    "modules": (1,),
    "widths": (16,),
    "strides": (1,),
    "mask_depths": (1,),
    "stem_width": 8,
    "tail_units": 0,
}
TINY_CBAM: dict[str, Any] = {"layers": (1,) * 4, "channels": (16, 16, 32, 32), "reduction": 4}
IMAGES = Preprocessing(32, 0.875, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


def tiny(**options: Any) -> Any:
    return ran.create_model("attention56_cifar", **{"num_classes": 3, **TINY, **options})


def tiny_cbam(**options: Any) -> Any:
    return ran.create_model("cbam_resnet18", **{"num_classes": 3, **TINY_CBAM, **options})


def assert_same(got: nn.Module, expected: nn.Module, channels: int = 3) -> None:
    """Equal tensors, of equal dtypes, that give equal outputs."""
    torch.testing.assert_close(got.state_dict(), expected.state_dict(), rtol=0, atol=0)
    x = torch.randn(2, channels, 32, 32)
    torch.testing.assert_close(got(x), expected.eval()(x), rtol=0, atol=0)


def refused(folder_or_repo: str | Path) -> str:
    """The one line with which it is refused."""
    with pytest.raises(UserError) as caught:
        ran.from_pretrained(folder_or_repo)
    assert "\n" not in str(caught.value)
    return str(caught.value)
