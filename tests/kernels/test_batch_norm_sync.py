"""Batch normalisation across processes: two with gloo against one with both shares."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

import ran_kernels
from ran_kernels import Convolution
from ran_kernels.nn import norm_relu

from .cbam_cases import features
from .norm_cases import CONVOLVED, IMAGES, affine, called, convolutions, images, running
from .operators import listed

SHAPE = (5, 6, 7, 9)
#: How many samples the first process has; the second has the others.
SHARES = (3, 0, 4)
#: Of what Triton's interpreter runs, where it does.
SMALL = (5, 3, 2, 4)
INTERPRETED = bool(find_spec("triton")) and os.environ.get("TRITON_INTERPRET") == "1"
#: Of one activation, for `convolutions`.
CONVOLUTIONS = ((4, 3, True, 2, 1), (3, 1, False))


def _share(t: Tensor, rank: int, first: int) -> Tensor:
    return (t[:first] if rank == 0 else t[first:]).detach().clone()


#: Those that are merged in one way: each process has its share, everybody's, or its terms of it.
_Found = tuple[list[Tensor], list[Tensor], list[Tensor]]


def _one(name: str, given: list[Tensor], group: Any) -> _Found:
    """Outputs and gradients of the images, running statistics, gradients of the parameters."""
    forms = CONVOLUTIONS if name in CONVOLVED else ()
    small = [*affine(given[0]), *convolutions(given[0], forms)]
    statistics = running(given[0])
    leaves = [t.requires_grad_() for t in (*given, *small)]
    options: dict[str, Any] = {"training": True, "process_group": group}
    op = called(ran_kernels, name, forms=forms, statistics=statistics, **options)
    outs = listed(op(*leaves))
    grads = torch.autograd.grad([t.sin().sum() for t in outs], leaves)
    shares = [*(t.detach() for t in outs), *grads[: len(given)]]
    return shares, statistics, list(grads[len(given) :])


def _module(given: Tensor, kind: type[nn.Module]) -> _Found:
    norm = kind(SHAPE[1])
    leaf = given.detach().requires_grad_()
    out = norm_relu(norm, leaf)
    (grad,) = torch.autograd.grad(out.sin().sum(), leaf)
    return [out.detach(), grad], list(norm.state_dict().values()), []


def _product(given: Tensor, group: Any) -> _Found:
    """A norm inside a product, and one that is told the statistics of the result."""
    x = given.contiguous(memory_format=torch.channels_last).requires_grad_()
    small = [*affine(x), *convolutions(x, [(4, 1, False)])]
    leaves = [x, *(t.requires_grad_() for t in small)]
    statistics, after = running(x), running(small[-1].transpose(0, 1))
    options: dict[str, Any] = {"training": True, "process_group": group}
    convs = [Convolution(small[-1])]
    with ran_kernels.backend("triton"):
        _, ((y, known),) = ran_kernels.norm_relu_conv(
            x, *statistics, *small[:2], convs=convs, **options
        )
        out = ran_kernels.batch_norm_relu(y, *after, statistics=known, **options)
        grads = torch.autograd.grad(out.sin().sum(), leaves)
    return [y.detach(), out.detach(), grads[0]], [*statistics, *after], list(grads[1:])


class _Unit(nn.Module):
    """A norm inside a product."""

    def __init__(self) -> None:
        super().__init__()
        x = features(SMALL)
        self.weight, self.bias = map(nn.Parameter, affine(x))
        (conv,) = convolutions(x, [(4, 1, False)])
        self.conv = nn.Parameter(conv.contiguous(memory_format=torch.channels_last))

    def forward(self, x: Tensor) -> Tensor:
        _, ((y, _),) = ran_kernels.norm_relu_conv(
            x, None, None, self.weight, self.bias, convs=[Convolution(self.conv)], training=True
        )
        return y


def _replicated(x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of this process's share alone, and of both as DDP has them."""
    x = x.contiguous(memory_format=torch.channels_last)
    found = []
    for unit in (_Unit(), nn.parallel.DistributedDataParallel(_Unit())):
        with ran_kernels.backend("triton"):
            unit(x).sin().sum().backward()
        found.append([p.grad.clone() for p in unit.parameters() if p.grad is not None])
    return found[0], found[1]


def _second_derivative(name: str, given: list[Tensor], wanted: int) -> str:
    """What is said where the gradient of a leaf is differentiated."""
    leaves = [t.requires_grad_() for t in (*given, *affine(given[0]))]
    leaves += convolutions(given[0], CONVOLUTIONS if name in CONVOLVED else ())
    forms = CONVOLUTIONS if name in CONVOLVED else ()
    options: dict[str, Any] = {"training": True, "process_group": distributed.group.WORLD}
    outs = listed(called(ran_kernels, name, forms=forms, **options)(*leaves))
    loss = torch.stack([t.sin().sum() for t in outs]).sum()
    (grad,) = torch.autograd.grad(loss, leaves[wanted], create_graph=True)
    try:
        torch.autograd.grad(grad.sum(), leaves[0])
    except RuntimeError as error:
        return str(error)
    return "nothing"


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found: dict[Any, Any] = {}
    for backend in ("native", "reference"):
        with ran_kernels.backend(backend):
            for name in (*IMAGES, *CONVOLVED):
                for first in SHARES:
                    given = [_share(t, rank, first) for t in images(name, SHAPE)]
                    found[backend, name, first] = _one(name, given, distributed.group.WORLD)
            for name in (*IMAGES, *CONVOLVED):
                given = [_share(t, rank, 2) for t in images(name, SHAPE)]
                said = [_second_derivative(name, list(given), wanted) for wanted in (0, len(given))]
                found["twice", backend, name] = said
    with ran_kernels.backend("native"):
        found["module"] = _module(_share(features(SHAPE), rank, 2), nn.SyncBatchNorm)
    if INTERPRETED:
        for first in SHARES[:2]:
            share = _share(features(SMALL), rank, first)
            found["product", first] = _product(share, distributed.group.WORLD)
        found["replicated"] = (*_replicated(_share(features(SMALL), rank, 2)), [])
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_are_as_one(tmp_path: Path) -> None:
    multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    both = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for key, first in both[0].items():
        second = both[1][key]
        if key[0] == "twice":
            refusal = "batch_norm: synchronised statistics can be differentiated once"
            assert {*first, *second} == {refusal}, key
            continue
        if key == "replicated":
            for i, (one, other) in enumerate(zip(first[0], second[0], strict=True)):
                torch.testing.assert_close(first[1][i], (one + other) / 2)
                assert torch.equal(first[1][i], second[1][i])
            continue
        if key == "module":
            whole = _module(features(SHAPE), nn.BatchNorm2d)
        elif key[0] == "product":
            whole = _product(features(SMALL), None)
        else:
            backend, name, _ = key
            with ran_kernels.backend(backend):
                whole = _one(name, images(name, SHAPE), None)
        statistics = first[1]
        assert all(map(torch.equal, statistics, second[1]))
        merged = (
            [torch.cat(pair) for pair in zip(first[0], second[0], strict=True)],
            statistics,
            [a + b for a, b in zip(first[2], second[2], strict=True)],
        )
        torch.testing.assert_close(merged, whole, rtol=1e-5, atol=2e-5, msg=str(key))


def test_one_process_is_the_plain_operator(tmp_path: Path) -> None:
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        given = images("batch_norm_relu", SHAPE)
        alone = _one("batch_norm_relu", given, None)
        shared = _one("batch_norm_relu", given, distributed.group.WORLD)
    finally:
        distributed.destroy_process_group()
    for ours, theirs in zip(shared, alone, strict=True):
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("training", [True, False])
def test_a_synchronised_layer_runs_without_processes(training: bool) -> None:
    found = []
    for kind in (nn.SyncBatchNorm, nn.BatchNorm2d):
        norm = kind(SHAPE[1]).train(training)
        with ran_kernels.backend("native"):
            found.append([norm_relu(norm, features(SHAPE)), *norm.state_dict().values()])
    assert all(map(torch.equal, *found))
