"""Inductor may lay out each argument of an operator as it likes, and copies none for that."""

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache, run_and_get_code
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import ran_kernels
from ran_kernels import library

from .harness import LAYOUTS, Place, outputs_and_grads, registrations
from .operators import CALLS, listed
from .test_norm_relu_conv import inputs, node
from .test_result_layouts import strides

#: Those that Inductor gives a convolution, and a third that comes from people's views.
WAYS = ("contiguous", "channels_last", "transposed")


class Calls(TorchDispatchMode):
    """Keeps one call of this library's operators for each choice of the tensors that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[tuple[Any, ...], Sequence[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "ran":
            self.seen.setdefault((func, *(value is None for value in args)), args)
        return func(*args, **(kwargs or {}))


def calls_at(place: Place) -> list[tuple[Any, Sequence[Any]]]:
    """Operators and arguments of the overloads that `place` runs, those of backwards too."""
    with Calls() as calls:
        for case in CALLS.values():
            if case.runs_at(place):
                place.run(case.results, case.op, case.inputs((2, 32, 4, 6), device=place.device))
        if place.backend == "triton":
            for convs, gate in (("wide", None), ("two", None), ("narrow", True)):
                given = inputs(convs, bool(gate), torch.float32, place.device)
                of = node(ran_kernels.norm_relu_conv, convs, training=True, gate=gate)
                place.run(outputs_and_grads, of, given)
    return [(key[0], args) for key, args in calls.seen.items()]


@registrations
def test_each_argument_has_a_layout_of_its_own(place: Place) -> None:
    calls = calls_at(place)
    names = {f"ran::{name}" for name in library.NATIVE}
    if place.backend == "triton":
        names = {f"ran::{name}.triton" for name in (*library.NATIVE, *library.TRITON_ALONE)}
    assert {operator.name() for operator, _ in calls} == names
    for number, (operator, args) in enumerate(calls):
        assert torch.Tag.flexible_layout in operator.tags
        expected = listed(operator(*args))
        images = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.dim() == 4]
        # Any two neighbours meet in all pairs of layouts.
        cases = [(first, step) for first in range(3) for step in range(3)]
        for first, step in place.share(cases, number, of=3):
            laid = list(args)
            for turn, i in enumerate(images):
                laid[i] = LAYOUTS[WAYS[(first + turn * step) % 3]](args[i])
            results = listed(operator(*laid))
            with FakeTensorMode() as mode:
                fakes = listed(
                    operator(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in laid))
                )
            for got, fake, want in zip(results, fakes, expected, strict=True):
                case = f"{operator} {first} {step}"
                assert (fake.shape, fake.dtype) == (got.shape, got.dtype), case
                assert strides(fake) == strides(got), case
                torch.testing.assert_close(got, want, msg=case)


class Chain(nn.Module):
    """Convolutions, which Inductor lays out channels_last, and an operator between every two."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(7))
        self.convs.append(nn.Conv2d(16, 16, 3, stride=2, padding=1))
        self.cbam = ran_kernels.nn.CBAM(16)

    def forward(self, x: Tensor) -> Tensor:
        logits, trunk, skip, *convs, halved = self.convs
        y = convs[0](ran_kernels.attention_gate(logits(x), trunk(x), activation="channel"))
        y = convs[1](ran_kernels.batch_norm_relu(y, None, None, training=True))
        y = convs[2](self.cbam(y))
        return convs[3](ran_kernels.upsample_add(halved(y), skip(x)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_makes_no_copies_around_the_operators() -> None:
    if torch.cuda.is_available():
        pytest.skip("the code that is counted is the CPU's")
    torch.compiler.reset()
    torch.manual_seed(0)
    model = Chain()
    x = torch.randn(2, 16, 20, 24)
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True)

    def step() -> Tensor:
        out: Tensor = compiled(x)
        out.square().sum().backward()
        return out

    # Tags are no part of what Inductor's cache goes by.
    with ran_kernels.backend("native"), fresh_cache():
        got, (forward, backward) = run_and_get_code(step)
    torch.testing.assert_close(got, expected)
    # What PyTorch's convolutions and this library's operators return has no such line.
    made = re.compile(
        rf"= (empty_strided_cpu|reinterpret_tensor)\(.*{re.escape(str(tuple(x.shape)))}"
    )
    # x for the convolutions, and the result as eager's is laid out; the gradient for the last one.
    assert len(made.findall(forward)) == 2
    assert len(made.findall(backward)) == 1
