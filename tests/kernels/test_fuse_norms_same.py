"""Forwards that look unusual, and compute the same with their normalisations fused."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ran_kernels

from .fuse_norm_cases import taken
from .test_fuse_norms_left import Forward, made


def _broadcasts(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.bn(self.conv(x)) + self.conv.bias[:, None, None])


def _wider(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.bn(self.conv(x)) + x.double())


def _wider_in_place(self: Any, x: Tensor) -> Tensor:
    y = self.bn(self.conv(x))
    y += x.double()
    return F.relu(y)


def _written_while_held(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    z = y
    y += 1  # z is y
    return self.act(self.bn(z)) + y


def _scaled_sum(self: Any, x: Tensor) -> Tensor:
    return F.relu(torch.add(self.bn(self.conv(x)), x, alpha=2))


def _sum_used_before(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x) + x
    z = y.mul_(2)
    return F.relu(self.bn(y)) + z


def _by_dtype(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.bn(self.conv(x)).to(x.dtype)) * x.shape[1]


def _other_settings(self: Any, x: Tensor) -> Tensor:
    return F.dropout(self.act(self.bn(self.conv(x))), 0.5, self.training) * self.kept[0]


def _optional(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    y = self.act(self.bn(self.conv(x)))
    return y if mask is None else y * mask


def _norm_twice(self: Any, x: Tensor) -> Tensor:
    y, z = self.bn(self.conv(x)), self.bn(self.conv(x * 2))
    return F.relu(y + z)  # z alone may wait: the running statistics are updated in turn


def _sum_before_another(self: Any, x: Tensor) -> Tensor:
    total, y = x + self.conv(x), self.bn(self.conv(x))
    return F.relu(self.bn(total)) + y


def _asks_for_bias(self: Any, x: Tensor) -> Tensor:
    y = self.act(self.bn(self.conv(x)))
    return y if self.conv.bias is None else y * self.conv.bias[:, None, None]


#: Forwards that look unusual, and what becomes one node in them.
ALIKE: dict[str, tuple[Forward, list[str]]] = {
    "broadcast": (_broadcasts, ["bn+shortcut+relu"]),
    "wider": (_wider, ["bn+shortcut+relu"]),
    "wider in place": (_wider_in_place, ["bn+shortcut+relu"]),
    "written while held": (_written_while_held, ["bn+act"]),
    "scaled sum": (_scaled_sum, []),
    "sum used before": (_sum_used_before, ["bn+relu"]),
    "by dtype": (_by_dtype, []),
    "settings": (_other_settings, ["bn+act"]),
    "optional": (_optional, ["bn+act"]),
    "norm twice": (_norm_twice, ["bn+shortcut+relu"]),
    "sum before another": (_sum_before_another, ["bn+relu"]),
    "bias": (_asks_for_bias, ["bn+act"]),
}


@pytest.mark.parametrize("name", ALIKE)
def test_computes_the_same(name: str) -> None:
    forward, pairs = ALIKE[name]
    module = made(forward)
    model = copy.deepcopy(module)
    report = ran_kernels.fuse(model, norms=True)
    assert report.norms == ({"": pairs} if pairs else {})
    used = name in ("norm twice", "sum before another")
    assert report.norms_left == ({"": "what bn holds is used elsewhere, too"} if used else {})
    results = []
    for m in (model, module):
        torch.manual_seed(1)
        x = torch.randn(2, 4, 5, 6, requires_grad=True)
        outs = [m.train()(x + 0), m.eval()(x + 0)]
        grads = torch.autograd.grad([out.sin().sum() for out in outs], [x, *m.parameters()])
        results.append([*outs, *grads, *m.buffers()])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_an_optional_argument_is_heeded() -> None:
    module = made(_optional)
    model = copy.deepcopy(module)
    ran_kernels.fuse(model, norms=True)
    x = torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(model(x, x), module(x, x))
    torch.testing.assert_close(model(x=x), module(x=x))
    torch.testing.assert_close(model(x, mask=x), module(x, mask=x))


def test_a_tensor_that_is_gone_counts() -> None:
    model = made(_asks_for_bias)
    ran_kernels.fuse(model, norms=True)
    model.get_submodule("conv").register_parameter("bias", None)
    x = torch.randn(2, 4, 5, 6)
    with taken(model) as ways:
        got = model(x)
    assert ways == {"": [False]}
    model.train()
    torch.testing.assert_close(got, _asks_for_bias(model, x))


class Named(Tensor):
    """A kind of tensor of its own, as torchvision's images are."""


def test_other_kinds_of_tensors_go_their_own_way() -> None:
    model = made(lambda self, x: self.bn(x).relu() * (2 if isinstance(x, Named) else 1))
    before = copy.deepcopy(model)
    ran_kernels.fuse(model, norms=True)
    x = torch.randn(2, 4, 5, 6)
    for given, way in ((x, True), (x.as_subclass(Named), False)):
        with taken(model) as ways:
            torch.testing.assert_close(model(given), before(given))
        assert ways == ({"": [way]})
