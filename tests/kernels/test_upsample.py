"""upsample and upsample_add on every backend against plain PyTorch."""

import functools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import ran_kernels
from ran_kernels import reference
from ran_kernels.layouts import memory_format_of

from ..watching import saved_by
from .harness import (
    DTYPES,
    LAYOUTS,
    OF_DERIVATIVES,
    Place,
    check_against_reference,
    everywhere,
    kernels,
    outputs_and_grads,
    registrations,
)

ROOT = Path(__file__).parents[2]

# (h, w) -> (H, W): twofold, odd and non-square, both ways at once, to and from 1×1, the same size,
# sizes on either side of the CPU's vectors, and ratios that do not fit their shuffles.
RATIOS = [
    (7, 7, 14, 14),
    (3, 5, 7, 4),
    (1, 1, 3, 5),
    (4, 6, 1, 1),
    (2, 3, 2, 3),
    (9, 10, 4, 21),
    (1, 8, 6, 40),
    (15, 3, 7, 31),
]
SMALL = (2, 3, 5, 4), (2, 3, 9, 7)
ALIGN = pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "edges"])


def inputs(
    of_x: tuple[int, ...] = SMALL[0],
    of_skip: tuple[int, ...] = SMALL[1],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(of_x))
    x, skip = (torch.randn(shape, generator=generator) for shape in (of_x, of_skip))
    return x.to(dtype).to(device), skip.to(dtype).to(device)


def to_size_of(skip: Tensor, module: Any = ran_kernels) -> Callable[..., Tensor]:
    """upsample to the size of `skip`, as a function of x."""
    return functools.partial(module.upsample, size=tuple(skip.shape[2:]))


@kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ratio", RATIOS, ids=str)
@ALIGN
def test_exactness(
    place: Place, ratio: tuple[int, int, int, int], dtype: torch.dtype, align_corners: bool
) -> None:
    # Each dtype meets each layout in one of the two cases; the test below crosses all of them.
    contiguous = (DTYPES.index(dtype) % 2 == 0) == align_corners
    layout, channels = ("contiguous", 3) if contiguous else ("channels_last", 17)
    pair = inputs((2, channels, *ratio[:2]), (2, channels, *ratio[2:]), dtype, place.device)
    x, skip = (LAYOUTS[layout](t) for t in pair)
    check_against_reference(
        place,
        ran_kernels.upsample_add,
        reference.upsample_add,
        (x, skip),
        align_corners=align_corners,
    )


@kernels
@pytest.mark.parametrize("ratio", RATIOS[1:3], ids=str)
@ALIGN
def test_exactness_without_the_addition(
    place: Place, ratio: tuple[int, int, int, int], align_corners: bool
) -> None:
    for dtype, layout in zip(DTYPES, ("contiguous", "channels_last") * 2, strict=True):
        x, skip = inputs((2, 9, *ratio[:2]), (2, 9, *ratio[2:]), dtype, place.device)
        check_against_reference(
            place,
            to_size_of(skip),
            to_size_of(skip, reference),
            (LAYOUTS[layout](x),),
            align_corners=align_corners,
        )


@kernels
@pytest.mark.parametrize("of_x", LAYOUTS)
@pytest.mark.parametrize("of_skip", LAYOUTS)
def test_layouts(place: Place, of_x: str, of_skip: str) -> None:
    x, skip = inputs(device=place.device)
    want, want_grads = outputs_and_grads(reference.upsample_add, (x, skip))
    x, skip = LAYOUTS[of_x](x), LAYOUTS[of_skip](skip)
    (out,), grads = place.run(outputs_and_grads, ran_kernels.upsample_add, (x, skip))
    torch.testing.assert_close(out, want[0])
    torch.testing.assert_close(grads, want_grads)
    assert out.is_contiguous(memory_format=memory_format_of(skip))
    alone = place.run(to_size_of(skip), x)
    torch.testing.assert_close(alone, want[0] - skip)
    assert alone.is_contiguous(memory_format=memory_format_of(x))


def test_layouts_follow_the_channels() -> None:
    for name, layout in LAYOUTS.items():
        expected = "channels_last" if name == "channels_last" else "contiguous_format"
        assert memory_format_of(layout(inputs()[1])) == getattr(torch, expected)
    wide = LAYOUTS["channels_last"](torch.zeros(2, 8, 3, 3))
    assert memory_format_of(wide[:, :4]) == torch.channels_last
    assert memory_format_of(torch.zeros(2, 1, 3, 3).expand(2, 4, 3, 3)) == torch.contiguous_format


@everywhere
@ALIGN
def test_gradcheck(place: Place, align_corners: bool) -> None:
    x, skip = (
        t.requires_grad_() for t in inputs((1, 2, 2, 3), (1, 2, 4, 2), torch.float64, place.device)
    )

    def add(x: Tensor, skip: Tensor) -> Tensor:
        return ran_kernels.upsample_add(x, skip, align_corners=align_corners)

    assert place.run(torch.autograd.gradcheck, add, (x, skip), fast_mode=True)
    alone = functools.partial(to_size_of(skip), align_corners=align_corners)
    assert place.run(torch.autograd.gradcheck, alone, (x,), fast_mode=True)


def spikes(height: int, width: int) -> Tensor:
    """Images of 1 but for one position, every one in turn: NaN in a channel, infinite in the other,
    which change places from image to image."""
    eye = torch.eye(height * width).reshape(-1, height, width)
    values = torch.tensor([torch.nan, torch.inf]).reshape(2, 1, 1)
    images = [torch.where(at == 1, values.roll(i, 0), 1.0) for i, at in enumerate(eye)]
    return torch.stack(images)


# (h, w) -> (H, W) at which an infinity tells the weights 0 and 2**-26, or a neighbour's gradient,
# apart: sizes that stay on one axis or both, images one pixel wide or high, and ratios at which
# rounding the position twice, or taking a float64's floor in float64, gives another weight.
TELLING = [
    (3, 3, 5, 5),
    (4, 3, 2, 2),
    (3, 2, 3, 2),
    (2, 1, 2, 2),
    (1, 2, 2, 2),
    (1, 1, 2, 3),
    (1, 5, 3, 3),
    (5, 1, 5, 7),
    (2, 3, 14, 9),
]


@kernels
@pytest.mark.filterwarnings("ignore:invalid value")  # Triton's interpreter is numpy, and says so
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@ALIGN
def test_special_values_propagate(
    place: Place, layout: str, dtype: torch.dtype, align_corners: bool
) -> None:
    # At every position in turn, so also where a tap has weight 0. On the CPU, whose PyTorch defines
    # what is right: its CUDA kernels round otherwise.
    # In Triton's interpreter each layout has half of the sizes.
    sizes = TELLING[layout == "channels_last" :: 2] if place.interpreted else TELLING
    for h, w, *size in sizes:
        x, grad = (LAYOUTS[layout](spikes(*at).to(dtype)) for at in ((h, w), size))
        results = []
        for module, device in ((ran_kernels, place.device), (reference, "cpu")):
            run = functools.partial(module.upsample, size=tuple(size), align_corners=align_corners)
            leaf = torch.zeros((len(grad), 2, h, w), dtype=dtype, device=device, requires_grad=True)
            out = place.run(run, x.to(device)) if module is ran_kernels else run(x)
            up = place.run(run, leaf) if module is ran_kernels else run(leaf)
            results += [(out.cpu(), torch.autograd.grad(up, leaf, grad.to(device))[0].cpu())]
        torch.testing.assert_close(*results, equal_nan=True)


@pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")
def test_storage_at_any_byte(tmp_path: Path) -> None:
    program = tmp_path / "misaligned"
    sources = [ROOT / "tests/kernels/misaligned.cpp", ROOT / "csrc/cpu/upsample.cpp"]
    flags = ["-std=c++17", "-O1", "-Wno-psabi", f"-I{ROOT}"]
    flags += ["-fsanitize=alignment", "-fno-sanitize-recover=all"]
    subprocess.run(["g++", *flags, *sources, "-o", program], check=True)
    ran = subprocess.run([program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "aligned or not\n"


@kernels
@pytest.mark.parametrize("shape", [(0, 3), (2, 0)], ids=str)
def test_empty(place: Place, shape: tuple[int, int]) -> None:
    x, skip = inputs((*shape, 2, 3), (*shape, 4, 5), device=place.device)
    x.requires_grad_()
    out = place.run(ran_kernels.upsample_add, x, skip)
    assert out.shape == skip.shape
    assert torch.autograd.grad(out.sum(), x)[0].shape == x.shape


@kernels
def test_nothing_is_saved_and_skips_gradient_is_not_copied(place: Place) -> None:
    x, skip = (t.requires_grad_() for t in inputs(device=place.device))
    outs: list[Tensor] = []
    saved = saved_by(lambda: outs.append(place.run(ran_kernels.upsample_add, x, skip)))
    assert saved == []
    (out,) = outs
    grad = torch.randn_like(out)
    _, of_skip = torch.autograd.grad(out, (x, skip), grad)
    assert of_skip.data_ptr() == grad.data_ptr()


@registrations
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "sliced"])
def test_opcheck(place: Place, layout: str) -> None:
    overload = "triton" if place.backend == "triton" else "default"
    x, skip = (LAYOUTS[layout](t) for t in inputs((2, 3, 2, 3), (2, 3, 4, 5), device=place.device))
    grad = LAYOUTS[layout](torch.randn_like(skip))
    ops = torch.ops.ran
    backward = getattr(ops.upsample_backward, overload)
    opcheck(backward, (grad, 2, 3, True), test_utils=OF_DERIVATIVES)
    leaves = (x.requires_grad_(), skip.requires_grad_())
    opcheck(getattr(ops.upsample_add, overload), (*leaves, True))
    opcheck(getattr(ops.upsample, overload), (leaves[0], 4, 5, False))


@kernels
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile_fullgraph(place: Place, layout: str, dynamic: bool) -> None:
    torch._dynamo.reset()

    def both(module: Any, x: Tensor, skip: Tensor) -> Tensor:
        joined = module.upsample_add(x, skip)
        return module.upsample(joined.relu(), (skip.shape[2] - 1, skip.shape[3] + 2))

    compiled = torch.compile(
        functools.partial(both, ran_kernels),
        fullgraph=True,
        dynamic=dynamic,
        backend=place.compiler,
    )
    shapes = [SMALL, ((3, 5, 4, 6), (3, 5, 7, 8))] if dynamic else [SMALL]
    for pair in shapes:
        args = tuple(LAYOUTS[layout](t) for t in inputs(*pair, device=place.device))
        want = outputs_and_grads(functools.partial(both, reference), args)
        got = place.run(outputs_and_grads, compiled, args)
        torch.testing.assert_close(got, want)


@kernels
def test_export(place: Place) -> None:
    class Add(torch.nn.Module):
        def forward(self, x: Tensor, skip: Tensor) -> Tensor:
            return ran_kernels.upsample_add(x, skip)

    batch, height = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "height"))
    args = inputs((3, 4, 5, 6), (3, 4, 9, 11), device=place.device)
    shapes = ({0: batch}, {0: batch, 2: height})
    program = place.run(torch.export.export, Add(), args, dynamic_shapes=shapes)
    other = inputs((5, 4, 5, 6), (5, 4, 12, 11), device=place.device)
    torch.testing.assert_close(program.module()(*other), reference.upsample_add(*other))


IMAGE = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ran_kernels.upsample_add(torch.zeros(2, 5, 2, 2), IMAGE), ValueError,
         r"x: expected shape \(2, 3, 2, 2\) with the batch and channels of skip, got \(2, 5, 2, 2"),
        (lambda: ran_kernels.upsample_add(torch.zeros(2, 3, 4), IMAGE), ValueError,
         r"x: expected \(N, C, H, W\), got shape \(2, 3, 4\)"),
        (lambda: ran_kernels.upsample_add(IMAGE.int(), IMAGE), TypeError,
         r"x: expected float64, float32, float16 or bfloat16, got int32"),
        (lambda: ran_kernels.upsample_add(IMAGE, [1.0]), TypeError,  # type: ignore[arg-type]
         r"skip: expected a tensor, got list"),
        (lambda: ran_kernels.upsample_add(IMAGE.to("meta"), IMAGE), ValueError,
         r"x: expected device cpu as skip, got meta"),
        (lambda: ran_kernels.upsample_add(torch.zeros(2, 3, 0, 4), IMAGE), ValueError,
         r"x: expected a height and width of at least 1, got shape \(2, 3, 0, 4\)"),
        (lambda: ran_kernels.upsample(IMAGE, 8), TypeError,  # type: ignore[arg-type]
         r"size: expected a pair of integers \(height, width\), got 8"),
        (lambda: ran_kernels.upsample(IMAGE, (8, 2.5)), TypeError,  # type: ignore[arg-type]
         r"size: expected a pair of integers \(height, width\), got \(8, 2.5\)"),
        (lambda: ran_kernels.upsample(IMAGE, (8, 0)), ValueError,
         r"size: expected a height and width of at least 1, got \(8, 0\)"),
    ],
    ids=["batch", "dimensions", "integers", "no-tensor", "device", "empty", "int", "float", "zero"],
)  # fmt: skip
def test_bad_arguments_are_named(
    call: Callable[[], Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["native", "triton"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_graph_capture(name: str, layout: str) -> None:
    x, skip = inputs((4, 64, 14, 14), (4, 64, 28, 28), device="cuda")
    x, skip = LAYOUTS[layout](x), LAYOUTS[layout](skip)
    with ran_kernels.backend(name):
        ran_kernels.upsample_add(x, skip)  # Triton compiles before the capture
        graph = torch.cuda.CUDAGraph()
        static = x.clone()
        with torch.cuda.graph(graph):
            out = ran_kernels.upsample_add(static, skip)
        static.copy_(x.flip(0))
        graph.replay()
        torch.testing.assert_close(out, reference.upsample_add(x.flip(0), skip))
