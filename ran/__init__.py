"""Residual Attention Networks and ResNets with CBAM in PyTorch.

``__init__.pyi`` lists each public name once, with the room it comes from: type checkers read it,
and so does ``attach_stub``, which loads a name when it is first asked for. Networks need neither
matplotlib nor Lightning nor the readers of data.
"""

from lazy_loader import attach_stub

from .program import is_program

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)

if not is_program():
    # timm knows the networks as soon as `ran` is imported.
    from .models import registry as registry
