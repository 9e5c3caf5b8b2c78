"""``norm_cbam``: a normalisation and CBAM as one node, against the two one by one."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ran_kernels
from ran_kernels.nn import CBAM, norm_cbam, norm_measured
from tests.watching import kept_by

from .cbam_cases import features
from .harness import Place, kernels

SHAPE = (3, 8, 5, 6)


class End(nn.Module):
    """The end of a residual block, its normalisation and CBAM away from where they start."""

    def __init__(self, dtype: torch.dtype = torch.float32, norm: type[nn.Module] = nn.BatchNorm2d):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.cbam = norm(SHAPE[1]), CBAM(SHAPE[1], 2, norm_weight=1.0)
        for p in self.parameters():
            nn.init.normal_(p, 0.5)
        self.to(dtype)
        self.recompute = True

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        relu = shortcut is not None
        return norm_cbam(self.norm, x, self.cbam, shortcut, relu, recompute=self.recompute)


def _one_by_one(end: End, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """With the same operators, so that the bits are the same."""
    norm: Any = end.norm
    if norm.training:
        norm.num_batches_tracked.add_(1)
    y = ran_kernels.batch_norm(
        *(x, norm.running_mean, norm.running_var, norm.weight, norm.bias),
        training=norm.training,
        momentum=norm.momentum,
        eps=norm.eps,
    )
    out: Tensor = end.cbam(y, shortcut, relu=shortcut is not None)
    return out


def _images(place: Place, dtype: torch.dtype, count: int, layout: str = "contiguous") -> Any:
    given = [features(SHAPE, dtype, place.device, layout=layout, seed=i) for i in range(count)]
    return [t.requires_grad_() for t in given]


@kernels
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_bits_of_the_two_one_by_one(
    place: Place, dtype: torch.dtype, training: bool, layout: str
) -> None:
    end = End(dtype).to(place.device).train(training)
    other = copy.deepcopy(end)
    for count in (1, 2):
        found = []
        for module, call in ((end, end), (other, _one_by_one)):
            images = _images(place, dtype, count, layout)
            given = images if call is end else [other, *images]
            out = place.run(call, *given)
            wanted = [*images, *module.parameters()]
            grads = torch.autograd.grad(out.sin().sum(), wanted)
            found.append([out, *grads, *module.state_dict().values()])
            assert ("BatchNormBlock" in type(out.grad_fn).__name__) == (call is end)
        torch.testing.assert_close(*found, rtol=0, atol=0)


@kernels
@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_some_inputs_alone(place: Place, training: bool) -> None:
    end = End().to(place.device).train(training)
    images = _images(place, torch.float32, 2)
    everything = [*images, *end.parameters()]
    whole = torch.autograd.grad(place.run(end, *images).sin().sum(), everything)
    for i in place.share(range(len(everything)), int(training)):
        for j, t in enumerate(everything):
            t.requires_grad_(i == j)
        (grad,) = torch.autograd.grad(place.run(end, *images).sin().sum(), everything[i])
        torch.testing.assert_close(grad, whole[i], rtol=0, atol=0)


@kernels
def test_what_is_normalised_alone_is_kept(place: Place) -> None:
    end = End().to(place.device)
    x, shortcut = _images(place, torch.float32, 2)
    kept = kept_by(lambda: place.run(end, x, shortcut))
    large = [t for t in kept if t.shape == x.shape]
    assert len(large) == 2  # x, and the result for its ReLU's mask
    assert any(t.data_ptr() == x.data_ptr() for t in large)
    end.recompute = False
    kept = kept_by(lambda: place.run(end, x, shortcut))
    assert len([t for t in kept if t.shape == x.shape]) == 3


@kernels
@pytest.mark.parametrize("first", ["node", "CBAM"])
def test_training_after_evaluation_changes_no_gradient(place: Place, first: str) -> None:
    """Running statistics are updated unnoticed by autograd: what evaluation keeps is its own."""
    grads = []
    for again in (True, False):
        end = End().to(place.device).eval()
        (x,) = _images(place, torch.float32, 1)
        call: nn.Module = end if first == "node" else end.cbam
        out = place.run(call, x)
        if again:
            place.run(end.train(), 3 * x.detach() + 1)
        grads.append(torch.autograd.grad(out.sin().sum(), [x, *call.parameters()]))
    torch.testing.assert_close(*grads, rtol=0, atol=0)


class _Doubled(CBAM):
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return 2 * super().forward(*args, **kwargs)


def _hooked(part: str) -> Any:
    def change(end: End) -> None:
        end.get_submodule(part).register_forward_hook(lambda module, args, out: 2 * out)

    return change


def _with(part: str, module: nn.Module) -> Any:
    return lambda end: end.set_submodule(part, module)


CHANGES = {
    "hooked norm": _hooked("norm"),
    "hooked CBAM": _hooked("cbam"),
    "hooked part": _hooked("cbam.conv"),
    "another norm": _with("norm", nn.InstanceNorm2d(SHAPE[1], affine=True)),
    "another CBAM": _with("cbam", _Doubled(SHAPE[1], 2)),
    "another part": _with("cbam.norm", nn.Identity()),
    "no momentum": lambda end: setattr(end.norm, "momentum", None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_modules_are_called_where_the_node_would_pass_something_over(change: str) -> None:
    torch.manual_seed(0)
    end = End()
    CHANGES[change](end)
    other = copy.deepcopy(end)
    x = features(SHAPE).requires_grad_()
    out = end(x, x)
    assert "BatchNormBlock" not in type(out.grad_fn).__name__
    torch.testing.assert_close(out, other.cbam(other.norm(x), x, relu=True), rtol=0, atol=0)
    torch.testing.assert_close(end.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_another_dtype_is_promoted_as_by_the_modules() -> None:
    end = End().eval()
    x, shortcut = features(SHAPE), features(SHAPE, torch.float64)
    end.double().norm.float()
    assert end(x, shortcut).dtype == torch.float64


def test_what_is_wrong_is_named() -> None:
    end = End()
    x = features(SHAPE)
    with pytest.raises(ValueError, match=r"shortcut: expected .*as x.*got"):
        end(x, x[:1])
    with pytest.raises(ValueError, match="with 8 channels"):
        end(x[:, :4])
    counts = [t for name, t in end.named_buffers() if name.endswith("num_batches_tracked")]
    assert [int(t) for t in counts] == [0, 0]


def test_compiled_it_keeps_as_little() -> None:
    """AOTAutograd takes the normalisation of the backward for that of the forward otherwise."""
    end, compiled = End(), End()
    call: Any = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    results = []
    for module, run in ((end, end), (compiled, call)):
        x, shortcut = (features(SHAPE, seed=i).requires_grad_() for i in range(2))
        out: Tensor = run(x, shortcut)
        grads = torch.autograd.grad(out.sin().sum(), [x, shortcut, *module.parameters()])
        results.append([out, *grads, *module.state_dict().values()])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
    x, shortcut = (features(SHAPE, seed=i).requires_grad_() for i in range(2))
    kept = [t for t in kept_by(lambda: call(x, shortcut)) if t.shape == x.shape]
    assert len(kept) == 2


def test_the_reference_calls_the_modules() -> None:
    end = End()
    x = features(SHAPE).requires_grad_()
    with ran_kernels.backend("reference"):
        got = end(x, x)
        other = End()
        want = other.cbam(norm_measured(other.norm, x), x, relu=True)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
