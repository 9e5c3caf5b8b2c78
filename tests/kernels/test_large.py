"""Tensors of more than 2³¹ elements, on the machine's CPU and, with ``-m large``, its GPU."""

import mmap

import pytest
import torch
from torch import Tensor

import ran_kernels
from ran_kernels import reference
from ran_kernels.batch_norm_parts import (
    BATCH_NORM_APPLY,
    BATCH_NORM_GRAD,
    BATCH_NORM_REDUCE,
    BATCH_NORM_STATISTICS,
)

DTYPE = torch.bfloat16
SIDE = 2**15 + 8
# Just over 2^31 elements: few maps of many positions, some, and many of few.
SHAPES = {
    "widest": (1, 2, SIDE, SIDE),
    "wide": (1, 65, 5760, 5760),
    "deep": (2, 2**20 + 128, 32, 32),
}


needs_private_pages = pytest.mark.skipif(
    not hasattr(mmap, "MAP_PRIVATE"), reason="this system has no such pages"
)


@pytest.fixture(autouse=True)
def _without_poison() -> None:
    torch.use_deterministic_algorithms(False)  # NaN in every element would be gigabytes of them


def unwritten_zeros(shape: tuple[int, ...], layout: str) -> Tensor:
    """Zeros that take no memory: pages that nobody has written are all the same one."""
    numel = torch.Size(shape).numel()
    pages = mmap.mmap(-1, numel * DTYPE.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    flat = torch.frombuffer(pages, dtype=DTYPE)
    if layout == "contiguous":
        return flat.view(shape)
    n, c, h, w = shape
    return flat.view(n, h, w, c).permute(0, 3, 1, 2)


@needs_private_pages
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", ["wide", "deep"])
def test_pools_find_what_lies_past_two_to_the_31(shape: str, layout: str) -> None:
    x = unwritten_zeros(SHAPES[shape], layout)
    assert x.numel() > 2**31
    n, c, h, w = (size - 1 for size in x.shape)
    x[n, c, h, w] = 3
    x[n, c, h - 1, w] = 2
    with ran_kernels.backend("native"):
        _, maximum = ran_kernels.channel_pool(x)
        maps = ran_kernels.spatial_pool(x)
    assert maximum.count_nonzero() == 1
    assert maximum[n, c] == 3
    assert maps[:, 0].count_nonzero() == 2
    assert maps[n, 0, h, w] == 3
    assert maps[n, 0, h - 1, w] == 2


@needs_private_pages
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients_of_upsample_come_from_past_two_to_the_31(layout: str) -> None:
    grad = unwritten_zeros(SHAPES["widest"], layout)
    grad[0, 1, -1, -1] = 5
    with ran_kernels.backend("native"):
        grad_x = torch.ops.ran.upsample_backward(grad, 2, 2, True)
    assert grad_x.count_nonzero() == 1
    assert grad_x[0, 1, 1, 1] == 5


def check_sums_of_batch_norm(backend: str, x: Tensor) -> None:
    """Statistics and sums of gradients, of zeros but for the last element."""
    x[-1, -1, -1, -1] = 2
    values = x[:, 0].numel()
    _, mean, variance = BATCH_NORM_STATISTICS[backend](x, None)
    zeros = torch.zeros_like(mean)
    _, *sums = BATCH_NORM_REDUCE[backend](x, x, None, zeros, zeros, None, None, 1.0, False)
    for found, last in zip((mean, variance, *sums), (2 / values, 4 / values, 2, 4), strict=True):
        assert found.count_nonzero() == 1
        torch.testing.assert_close(found[-1].item(), float(last), rtol=1e-5, atol=0)


@needs_private_pages
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_sums_of_batch_norm_come_from_past_two_to_the_31(layout: str) -> None:
    check_sums_of_batch_norm("native", unwritten_zeros(SHAPES["wide"], layout))


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.large
@pytest.mark.parametrize("backend", ["native", pytest.param("triton", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gates(backend: str, layout: str) -> None:
    x = unwritten_zeros(SHAPES["widest"], layout).to(_device())
    x[..., -1] = 2
    with ran_kernels.backend(backend):
        out = ran_kernels.attention_gate(torch.zeros_like(x), x)
        assert (out[..., :-1] == 0).all()
        assert (out[..., -1] == 3).all()
        del out
        logits = torch.zeros((1, 2), dtype=DTYPE, device=x.device)
        out = ran_kernels.cbam_gate(x, logits)
        assert (out[..., :-1] == 0).all()
        assert (out[..., -1] == 1).all()
        del out
        factor = torch.ones(2, device=x.device)
        out = ran_kernels.affine_relu(x, factor, factor)
    assert (out[..., :-1] == 1).all()
    assert (out[..., -1] == 3).all()


@pytest.mark.large
@pytest.mark.parametrize("backend", ["native", pytest.param("triton", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_batch_norm(backend: str, layout: str) -> None:
    """Each pass with all its terms, where the results of zeros are no zeros."""
    x = unwritten_zeros(SHAPES["widest"], layout).to(_device())
    x[..., -1] = 2
    one = torch.ones(2, device=x.device)
    out = BATCH_NORM_APPLY[backend](x, x, one, one, 2 * one, 3 * one, 0.0, True)
    assert (out[..., :-1] == 1).all()
    assert (out[..., -1] == 7).all()
    norm = (one, one, 2 * one, one)  # of zeros -1, which the ReLU holds back
    grad_x = BATCH_NORM_GRAD[backend](out, x, x, *norm, one, one / 2, 1, 0.0, True)
    assert (grad_x[..., :-1] == -1).all()
    assert (grad_x[..., -1] == 13).all()


@pytest.mark.large
@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", ["wide", "deep"])
def test_sums_of_batch_norm_on_a_gpu(backend: str, layout: str, shape: str) -> None:
    check_sums_of_batch_norm(backend, unwritten_zeros(SHAPES[shape], layout).cuda())


@pytest.mark.large
@pytest.mark.parametrize("backend", ["native", pytest.param("triton", marks=pytest.mark.gpu)])
def test_upsample(backend: str) -> None:
    x = torch.ones((1, 1, 2**15, SIDE), dtype=DTYPE, device=_device())
    x[..., -1] = 3
    with ran_kernels.backend(backend):
        out = ran_kernels.upsample(x, (2**16, SIDE))
    assert (out[..., :-1] == 1).all()
    assert (out[..., -1] == 3).all()


@pytest.mark.large
@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_pools_on_a_gpu(backend: str, layout: str) -> None:
    x = unwritten_zeros(SHAPES["deep"], layout).cuda()
    x[-1, -1, -1, -1] = 3
    with ran_kernels.backend(backend):
        _, maximum = ran_kernels.channel_pool(x)
        maps = ran_kernels.spatial_pool(x)
    assert torch.equal(maximum, reference.channel_pool(x)[1])
    assert maps[:, 0].sum() == 3


@pytest.mark.large
@pytest.mark.gpu
def test_products_reach_past_two_to_the_31() -> None:
    """Forward, statistics, and both gradients, of a last position's alone."""
    x = unwritten_zeros((1, 64, 5800, 5800), "channels_last").cuda()
    assert x.numel() > 2**31
    x[..., -1, -1] = 1
    x.requires_grad_()
    weight = torch.ones((16, 64, 1, 1), dtype=DTYPE, device="cuda", requires_grad=True)
    convs = [ran_kernels.Convolution(weight)]
    with ran_kernels.backend("triton"):
        _, ((y, statistics),) = ran_kernels.conv_statistics(x, convs=convs)
        assert (y[..., :-1, :] == 0).all()
        assert (y[..., -1, -1] == 64).all()
        assert statistics is not None
        torch.testing.assert_close(
            statistics[0], torch.full_like(statistics[0], 64 / 5800**2), rtol=1e-5, atol=0
        )
        grad_x, grad_weight = torch.autograd.grad(y[..., -1, -1].sum(), (x, weight))
    assert (grad_weight == 1).all()
    assert (grad_x[..., :-1, :] == 0).all()
    assert (grad_x[..., -1, -1] == 16).all()
