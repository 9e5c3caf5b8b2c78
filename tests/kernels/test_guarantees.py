"""What every operator guarantees, of each operator on every backend."""

import pytest
import torch
from torch import Tensor

import ran_kernels

from .cbam_cases import NATIVE_LAYOUTS, fits
from .harness import DTYPES, LAYOUTS, Place
from .operators import CALLS, OPERATORS, Case, Op, each_call, each_operator, listed

SPECIAL = (torch.nan, torch.inf, -torch.inf)


@each_call
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
def test_same_bits_every_run_and_inputs_untouched(place: Place, name: str, layout: str) -> None:
    case = CALLS[name]
    # Enough rows for several threads, and a number of them that 2, 3 and 5 do not divide.
    large = (3, 67, 23, 29)
    shape = large if fits(place, large) else (2, 17, 3, 5)
    inputs = case.inputs(shape, device=place.device, layout=layout)
    before = [t.clone() for t in inputs]
    first = place.run(case.results, case.op, inputs)
    threads = torch.get_num_threads()
    try:
        # Triton's interpreter and the emulator have no use for PyTorch's threads.
        for count in (5,) if place.interpreted or place.emulated else (1, 2, 3, 5):
            torch.set_num_threads(count)
            assert all(map(torch.equal, first, place.run(case.results, case.op, inputs)))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, inputs, before))


@each_operator
def test_promotion_is_pytorchs(place: Place, name: str) -> None:
    case = OPERATORS[name]
    # Dtypes are promoted before a backend is chosen: what is slow takes one pair in four, others
    # for each operator, in which every dtype stands on either side.
    pairs = [(one, DTYPES[(i + k) % 4]) for i, one in enumerate(DTYPES) for k in range(4)]
    for one, other in place.share(pairs, list(OPERATORS).index(name), of=4):
        inputs = case.inputs((2, 3, 2, 3), one, place.device)
        for i in range(len(inputs)):
            mixed = [t.to(other) if i == j else t for j, t in enumerate(inputs)]
            promoting = [mixed[j] for j in case.promoting or range(len(mixed))]
            expected = promoting[0].dtype
            for t in promoting:
                expected = torch.promote_types(expected, t.dtype)
            assert all(t.dtype == expected for t in listed(place.run(case.op, *mixed)))


@each_operator
def test_autocast_as_the_plain_expression(place: Place, name: str) -> None:
    case = OPERATORS[name]
    inputs = case.inputs(device=place.device)
    low = [t.bfloat16() for t in inputs]
    with torch.autocast(place.device, torch.bfloat16):
        for arguments in (inputs, low, [low[0], *inputs[1:]], [*inputs[:-1], low[-1]]):
            want = listed(case.reference(*arguments))
            got = listed(place.run(case.op, *arguments))
            for a, b in zip(got, want, strict=True):
                assert a.dtype == b.dtype
                torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def _spiked(t: Tensor, layout: str) -> Tensor:
    """t with one special value in each of its first three parts, at its start, middle and end."""
    t = t.clone(memory_format=torch.contiguous_format)
    parts = t.flatten(1) if t.dim() > 1 and len(t) >= len(SPECIAL) else t.view(1, -1).t()
    for part, value, place in zip(parts, SPECIAL, (0, 0.5, 1), strict=False):
        part[int(place * (len(part) - 1))] = value
    assert (~t.isfinite()).sum() == len(SPECIAL)
    return LAYOUTS[layout](t) if t.dim() == 4 else t


def _special(place: Place, case: Case, inputs: list[Tensor], incoming: list[Tensor]) -> None:
    """The reference is computed on the CPU: in deterministic mode CUDA's own makes inf - inf."""

    def run(op: Op, device: str) -> list[Tensor]:
        leaves = [t.detach().to(device).requires_grad_(case.differentiable) for t in inputs]
        outputs = listed(op(*leaves))
        if not case.differentiable:
            return outputs
        grads = torch.autograd.grad(outputs, leaves, [t.to(device) for t in incoming])
        return [*(t.detach() for t in outputs), *grads]

    want = run(case.plain or case.reference, "cpu")
    got = place.run(run, case.op, place.device)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.cpu(), b, equal_nan=True)


@each_operator
@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize("width", [5, 1], ids=["maps", "columns"])
def test_a_special_value_reaches_what_it_reaches_in_pytorch(
    place: Place, name: str, layout: str, width: int
) -> None:
    case = OPERATORS[name]
    inputs = case.inputs((3, 4, 6, width), layout=layout)
    outputs = listed(case.reference(*inputs))
    incoming = [torch.linspace(-2, 3, t.numel()).cos().reshape(t.shape) for t in outputs]
    for i in range(len(inputs)):
        changed = [_spiked(t, layout) if i == j else t for j, t in enumerate(inputs)]
        _special(place, case, changed, incoming)
    if case.differentiable:
        _special(place, case, inputs, [_spiked(t, layout) for t in incoming])


@each_operator
def test_what_cannot_be_differentiated_names_the_way_out(place: Place, name: str) -> None:
    """The kernels differentiate once; those for inference not at all."""
    case = OPERATORS[name]
    inputs = case.inputs(device=place.device)
    way_out = r"backend\('reference'\)"
    if not case.differentiable:
        for leaf in inputs:  # at the call, whichever of them asks for a gradient
            leaf.requires_grad_()
            with pytest.raises(RuntimeError, match=f"^{name}: .* is for inference .*{way_out}"):
                place.run(case.op, *inputs)
            with torch.no_grad():
                place.run(case.op, *inputs)
            leaf.requires_grad_(False)
        inputs[0].requires_grad_()
        with ran_kernels.backend("reference"):
            listed(case.op(*inputs))[0].sum().backward()
        assert inputs[0].grad is not None
        return
    inputs[0].requires_grad_()
    outputs = listed(place.run(case.op, *inputs))
    # Of the incoming gradient too, on which every derivative depends.
    incoming = [torch.ones_like(t, requires_grad=True) for t in outputs]
    (grad,) = torch.autograd.grad(outputs, inputs[0], incoming, create_graph=True)
    with pytest.raises(RuntimeError, match=way_out):
        grad.sum().backward()


@each_operator
def test_compile_fullgraph(place: Place, name: str) -> None:
    torch._dynamo.reset()
    case = OPERATORS[name]
    inputs = case.inputs(device=place.device, layout="channels_last")

    def around(op: Op) -> Op:
        return lambda first, *rest: [t.sigmoid() for t in listed(op(first.tanh(), *rest))]

    compiled = torch.compile(
        around(case.op),
        fullgraph=True,
        backend=place.compiler,
    )
    want = case.results(around(case.reference), inputs)
    got = place.run(case.results, compiled, inputs)
    torch.testing.assert_close(got, want)
