"""Networks made for serving: `ran.deploy`."""

import threading
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from ran_kernels import backends
from ran_kernels.parts import has_call_hooks

from ..checks import require_choice, require_finite, require_images
from ..models.cbam_resnet import CbamResNet
from ..models.residual_attention import ResidualAttentionNetwork
from .attention import DeployedResidualAttention
from .cbam import DeployedCbamResNet
from .layers import LAYOUTS, Conv, Maker
from .plan import Kept, Plans, may_keep, modules_of

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
#: Calls before a CUDA graph is captured: cuDNN chooses its algorithms, allocators settle.
_WARM_UP_CALLS = 3


def deploy(
    model: nn.Module,
    example: Tensor | None = None,
    dtype: torch.dtype | None = None,
    layout: str = "channels_last",
    *,
    graph: bool = False,
    fuse_gate: bool = False,
) -> "Deployed":
    """A network that gives what `model` gives in evaluation mode, made for inference alone.

    Batch normalisation is in the weights of the convolution before it, ReLU and the addition of a
    shortcut in its epilogue. Where no convolution stands before a normalisation, one pass over
    memory does the addition, the normalisation and the ReLU (`ran_kernels.add_affine_relu`). The
    weights are copied: `model` stays as it was, and later changes of it do not show.

    Args:
        model: a ``ran.ResidualAttentionNetwork``, a ``ran.CbamResNet``, or timm's ResNet whose CBAM
            modules ``ran_kernels.fuse`` has replaced.
        example: images (N, in_chans, H, W) to run once, so that the first call for this shape is
            as quick as the others; None to leave that to the first call.
        dtype: of the weights and activations: float64, float32, float16 or bfloat16; that of
            `model` if None.
        layout: "channels_last" or "contiguous".
        graph: on CUDA, capture a CUDA graph for every shape that comes, and replay it. Each keeps
            its activations; what is launched takes no time of the CPU any more.
        fuse_gate: on CUDA, make an attention module's mask and gate in the kernel of the mask's
            last convolution (`ran_kernels.conv_gate`) where the activation is "mixed". Off until a
            GPU has measured it. Products in float32 are then as exact as those of matrices,
            `torch.set_float32_matmul_precision`.

    Returns:
        Images (N, in_chans, H, W) of any floating-point dtype, on the network's device, to logits
        (N, num_classes) in `dtype`. Several threads may call it at the same time. It gives no
        gradients, and ``train()`` raises RuntimeError. An image with NaN or infinity in it has NaN
        for all its logits, and the others of the batch have theirs. What grows beyond `dtype` in
        between, say beyond 65504 in float16, may not show: a fused ReLU makes 0 of NaN.

    Raises:
        TypeError: `model` is no known network, or holds a layer that is unknown; it is named.
        UserError: a ValueError. A tensor of `model`, which is named, holds NaN or infinity, or
            would in `dtype`.
        ValueError: `dtype` or `layout` is none of the above, `graph` is asked for on another device
            than CUDA, a layer has hooks of any kind or another forward than its class, or a
            normalisation keeps no running statistics.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a module, got {type(model).__name__}")
    require_choice("layout", LAYOUTS, layout)
    first = next(model.parameters(), None)
    dtype = dtype or (torch.float32 if first is None else first.dtype)
    require_choice("dtype", DTYPES, dtype)
    for name, module in model.named_modules():
        if has_call_hooks(module):
            raise ValueError(f"model: expected no hooks, as they would be lost; {name!r} has some")
        if "forward" in module.__dict__:
            raise ValueError(f"model: expected each class's own forward; {name!r} has another")
    require_finite("model", model.state_dict())
    make = Maker(dtype, layout, fuse_gate)
    network: nn.Module
    # No subclass: it may compute something else.
    if type(model) is ResidualAttentionNetwork:
        network = DeployedResidualAttention(model, make)
    elif type(model) in (CbamResNet, ResNet):
        network = DeployedCbamResNet(model, make)  # type: ignore[arg-type]
    else:
        raise TypeError(
            "model: expected a ResidualAttentionNetwork, a CbamResNet or timm's ResNet after "
            f"ran_kernels.fuse, got {type(model).__name__}"
        )
    deployed = Deployed(network, make, graph)
    short = str(dtype).removeprefix("torch.")
    require_finite(f"model, folded, in {short}", network.state_dict())
    if graph and deployed.device.type != "cuda":
        raise ValueError(f"graph: expected a model on CUDA, got one on {deployed.device}")
    if example is not None:
        deployed(example)
    return deployed


class Deployed(nn.Module):
    """What `deploy` makes. A call changes nothing in it but the plans and graphs kept.

    They hold for the weights as they are. Weights may be loaded, replaced and written into in place
    as those of any module; plans are then made again. What PyTorch does not count, which is writing
    through ``w.data``, ``w.numpy()`` or a pointer, asks for ``forget_plans()`` afterwards. Tensors
    that inference mode made are never counted, and a network of them keeps no plan.
    """

    def __init__(self, network: nn.Module, make: Maker, graph: bool) -> None:
        super().__init__()
        # The rest, a classifier for one, was copied in the dtype of the original.
        self.network = network.eval().requires_grad_(False)
        for module in network.modules():
            if isinstance(module, nn.Linear):
                module.to(make.dtype)
        self.dtype, self.layout, self.graph = make.dtype, make.layout, graph
        self.in_chans: int = network.in_chans  # type: ignore[assignment]
        self.num_classes: int = network.num_classes  # type: ignore[assignment]
        self.minimum_size: int = getattr(network, "minimum_size", 1)
        self.training = False
        self._begin()

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return next(self.network.buffers()).device

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) to logits (N, num_classes)."""
        # torch.export, which has no gradients in mind, would write the context into its program.
        exporting = torch.compiler.is_compiling()
        with nullcontext() if exporting else torch.no_grad():
            require_images(x, self.in_chans, self.minimum_size)
            x = x.to(self.dtype, memory_format=LAYOUTS[self.layout])
            if exporting:
                return self.network(x)
            return _as_finite_as(x, self._run(x))

    def train(self, mode: bool = True) -> "Deployed":
        """Raises RuntimeError for `mode`: there is nothing left to train."""
        if mode:
            raise RuntimeError("train: a deployed network is for inference; train the original")
        return super().train(False)

    def forget_plans(self) -> None:
        """Drop all plans, packed weights and CUDA graphs, for what wrote into weights unseen."""
        self._begin()
        for module in self.network.modules():
            if isinstance(module, Conv):
                module.forget()

    def load_state_dict(
        self, state_dict: Mapping[str, Any], *arguments: Any, **options: Any
    ) -> Any:
        """As ``nn.Module``'s; raises UserError, and loads nothing, where a tensor is not finite."""
        require_finite("state_dict", state_dict)
        return super().load_state_dict(state_dict, *arguments, **options)

    def _run(self, x: Tensor) -> Tensor:
        modules = modules_of(self.network)
        if not may_keep(modules, x):
            return self.network(x)
        if self.graph and x.is_cuda:
            return self._graph_of(modules, x)(x)
        return self._plans(modules, x)

    def _graph_of(self, modules: list[nn.Module], x: Tensor) -> "_Graph":
        key = (x.shape, backends.current())
        with self._lock:  # two threads must not capture at the same time
            graphs = self._graphs.of(modules)
            if key not in graphs:
                graphs[key] = _Graph(self.network, x)
            graph: _Graph = graphs[key]
            return graph

    def _begin(self) -> None:
        self._plans, self._graphs, self._lock = Plans(), Kept(), threading.Lock()

    def _apply(self, fn: Any, recurse: bool = True) -> "Deployed":
        """Raises UserError, and changes nothing, where a tensor is not finite in a new dtype."""
        state = self.network.state_dict()
        to = fn(next(iter(state.values()))[:0]).dtype
        if to != self.dtype:
            short = str(to).removeprefix("torch.")
            for name, tensor in state.items():
                require_finite(f"model, in {short}", {name: fn(tensor)})
        super()._apply(fn, recurse)
        self.dtype = next(m.weight.dtype for m in self.modules() if isinstance(m, Conv))
        return self

    def _replicate_for_data_parallel(self) -> "Deployed":
        replica: Deployed = super()._replicate_for_data_parallel()
        replica._begin()
        return replica

    # Plans, graphs and locks are of this process: a copy makes its own.

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_plans", "_graphs", "_lock")
        return {k: v for k, v in self.__dict__.items() if k not in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin()


def _as_finite_as(x: Tensor, out: Tensor) -> Tensor:
    """`out`, NaN for every image of x that holds NaN or infinity, which fused ReLUs make 0 of.

    A pass over the images alone, with no wait for a GPU.
    """
    nothing = (x * 0).sum((1, 2, 3)).to(out.dtype)
    return out + nothing.view(-1, *[1] * (out.dim() - 1))


class _Graph:
    """A CUDA graph of a network for one shape, with the memory that it reads and writes."""

    def __init__(self, network: nn.Module, x: Tensor) -> None:
        self._lock = threading.Lock()
        with torch.inference_mode(False):  # written into later, perhaps outside of that mode
            self._input = torch.empty_like(x).copy_(x)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(x.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP_CALLS):
                    network(self._input)
            torch.cuda.current_stream().wait_stream(side)
            # What other threads do on their streams meanwhile is none of the capture's business.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._output = network(self._input)
            self._done = torch.cuda.Event()
            self._done.record()

    def __call__(self, x: Tensor) -> Tensor:
        with self._lock, torch.cuda.device(x.device):
            # The caller before may have used another stream.
            stream = torch.cuda.current_stream()
            stream.wait_event(self._done)
            self._input.copy_(x)
            self._graph.replay()
            output = self._output.clone()
            self._done.record(stream)
        return output
