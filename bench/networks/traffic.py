"""Bytes that a training step moves, by operator, counted without running it.

    python -m bench.networks.traffic --network attention92 --result network-traffic.json

Forward, loss and backward go through every operator on tensors that have a shape and no memory, so
that no GPU and no time is needed and every machine counts the same. An operator reads each argument
once and writes each result once, except that batch normalisation in training reads its input twice
forward, and its input and gradient twice backward; views cost nothing. "plain" runs every operator
of the network as its reference in plain PyTorch. On a GPU a step takes about the time of its bytes.
Beside them stand the bytes that the forward keeps for the backward, parameters aside.

    python -m bench.networks.traffic --network torchvision/resnet50 --network timm/resnet50

counts other libraries' networks: "plain" is theirs, "ours" what ``ran_kernels.fuse`` with ``norms``
makes of it.

``--inductor`` adds what torch.compile makes of the plain network: Inductor's own count of the
buffers that its kernels read and write, with the fusions that it chooses for a CPU. It lowers the
whole step and compiles none of it; that takes minutes a network.
"""

import argparse
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ran
import ran_kernels
from bench.results_file import report as finish

from . import tables
from .inductor_traffic import counted_by_inductor

NETWORKS = ("attention56", "attention92", "cbam_resnet50", "cbam_resnext50_32x4d")
#: The backend, what is recomputed, and whether 1×1 convolutions take norms in, by what the results
#: call a variant. The last is Triton's alone, which counts on a CPU what it would run on a GPU.
VARIANTS: dict[str, tuple[str, bool | str, bool]] = {
    "plain": ("reference", False, False),
    "ours": ("auto", False, False),
    "ours norms": ("auto", "norms", False),
    "ours norm_conv": ("triton", False, True),
}
#: Makers of networks by name, by what stands before the name.
LIBRARIES = {"torchvision": torchvision.models.get_model, "timm": timm.create_model}
#: Which arguments are read once more than they are named.
READ_AGAIN = {
    "aten::native_batch_norm": (0,),
    "aten::cudnn_batch_norm": (0,),
    "aten::native_batch_norm_backward": (0, 1),
    "aten::cudnn_batch_norm_backward": (0, 1),
}
#: Results that are written without being read first, though they are arguments as well.
OVERWRITES = ("aten::copy_", "aten::zero_", "aten::fill_")
#: Give memory, or another name for it.
FREE = ("empty", "detach", "alias")


class Traffic(TorchDispatchMode):
    """Counts, while it is entered, the bytes of every operator's arguments and results.

    Attributes:
        bytes: by operator.
        calls: by operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if func.is_view or func.namespace == "prim" or any(part in name for part in FREE):
            return result
        read = _bytes((args, kwargs)) + sum(_bytes(args[i]) for i in READ_AGAIN.get(name, ()))
        if name in OVERWRITES:
            read -= _bytes(args[0])
        self.bytes[name] += read + _bytes(result)
        self.calls[name] += 1
        return result


def _bytes(tree: Any) -> int:
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def of_gpu() -> Iterator[None]:
    """Triton's operators stand for tensors of a CPU, too, of which nothing is computed."""
    with patch.dict(os.environ, TRITON_INTERPRET="1"), ran_kernels.backend("triton"):
        yield


@contextmanager
def kept(model: nn.Module) -> Iterator[dict[Any, int]]:
    """The bytes of each storage that is kept for a backward meanwhile, but for those of `model`."""
    found: dict[Any, int] = {}
    alive: list[Tensor] = [*model.parameters(), *model.buffers()]
    own = {tensor.untyped_storage()._cdata for tensor in alive}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            alive.append(tensor)  # or the next one may get its number
            found[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def variants(network: str) -> list[str]:
    """Those of ``VARIANTS`` that `network` has."""
    return [name for name in VARIANTS if "/" not in network or name in ("plain", "ours")]


def _model(network: str, variant: str) -> tuple[nn.Module, tuple[int, ...]]:
    """The network, and the channels, height and width of its images."""
    library, _, name = network.rpartition("/")
    if not library:
        _, recomputed, norm_conv = VARIANTS[variant]
        model: Any = ran.create_model(name, norm_conv=norm_conv)
        model.set_grad_checkpointing(recomputed)
        return model, model.pretrained_cfg["input_size"]
    model = LIBRARIES[library](name)
    if variant != "plain":
        report = ran_kernels.fuse(model, norms=True)
        if not report.norms:
            raise ValueError(f"{network}: expected normalisations to fuse, got: {report}")
    return model, (3, 224, 224)


@contextmanager
def training_step(
    network: str, batch: int, size: int | None, dtype: torch.dtype, variant: str
) -> Iterator[tuple[Callable[[], Tensor], int, nn.Module]]:
    """Forward and loss of a network in training, channels_last, all of it in `dtype`, as one of
    ``VARIANTS``; its images' height and width, by default the network's own; the network.

    In its context tensors have no memory, and the result's ``backward`` may be called.
    """
    default = torch.get_default_dtype()
    backend, _, _ = VARIANTS[variant]
    wanted = of_gpu() if backend == "triton" else ran_kernels.backend(backend)
    # Some of timm's networks compute what they are made of, which takes memory.
    made = unset_fake_temporarily() if "/" in network else nullcontext()
    with FakeTensorMode(allow_non_fake_inputs=True), wanted:
        try:
            torch.set_default_dtype(dtype)
            with made:
                model, (channels, side, _) = _model(network, variant)
                model.train()
        finally:
            torch.set_default_dtype(default)
        side = size or side
        shape = (batch, channels, side, side)
        images = torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
        classes = torch.zeros(batch, dtype=torch.long)

        def loss() -> Tensor:
            return F.cross_entropy(model(images), classes)

        yield loss, side, model


def measure(
    network: str, batch: int, size: int | None, dtype: torch.dtype, inductor: bool
) -> dict[str, Any]:
    """One entry of a result file."""
    moved: dict[str, int] = {}
    kept_bytes: dict[str, int] = {}
    operators: dict[str, dict[str, dict[str, int]]] = {}
    for variant in variants(network):
        step = training_step(network, batch, size, dtype, variant)
        with step as (loss, side, model), Traffic() as found:
            with kept(model) as storages:
                value = loss()
            kept_bytes[variant] = sum(storages.values())
            value.backward()
        moved[variant] = found.bytes.total()
        operators[variant] = {
            name: {"calls": found.calls[name], "bytes": number}
            for name, number in found.bytes.most_common()
        }
    if inductor:
        with training_step(network, batch, size, dtype, "plain") as (loss, side, _):
            moved["plain compiled"] = counted_by_inductor(loss)
    return {
        "network": network,
        "batch": batch,
        "size": [side, side],
        "dtype": str(dtype).removeprefix("torch."),
        "bytes": moved,
        "kept_bytes": kept_bytes,
        "operators": operators,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; ``arguments`` are ``sys.argv``'s if None."""
    parser = argparse.ArgumentParser(prog="python -m bench.networks.traffic")
    parser.add_argument("--network", action="append", help="repeatable; by default four")
    parser.add_argument("--batch", type=int, default=128, help="images")
    parser.add_argument("--size", type=int, help="height and width, by default the network's own")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--inductor", action="store_true", help="what torch.compile makes of plain")
    parser.add_argument("--result", type=Path, help="JSON file to write")
    given = parser.parse_args(arguments)
    one = partial(
        measure,
        batch=given.batch,
        size=given.size,
        dtype=getattr(torch, given.dtype),
        inductor=given.inductor,
    )
    results = [one(name) for name in given.network or NETWORKS]
    finish("network traffic", results, tables.traffic, given.result)


if __name__ == "__main__":
    main()
