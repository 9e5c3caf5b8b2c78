"""The layers of a network made for inference: batch normalisation folded away, ReLU fused.

On the CPU a convolution is oneDNN's, with its weights packed once a shape and the bias, the
addition and the ReLU in its epilogue; on CUDA it is cuDNN's with bias and ReLU. Both are reached
through operators that PyTorch ships. Everywhere else, and where torch.export looks on, it is
F.conv2d.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

import ran_kernels
from ran_kernels.parts import is_pointwise

from ..errors import UserError
from .plan import MOST_SHAPES, is_watched, marks_of

#: The dtypes that cuDNN's fused convolutions are called in.
_CUDNN_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

#: How images, weights and activations may be laid out. Modules keep the name, which every protocol
#: of pickle can write.
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
#: What scales and shifts in evaluation: `nn.BatchNorm2d`, and what conversions make of it.
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)


def require_kind(layer: object, kinds: tuple[type[nn.Module], ...], name: str) -> None:
    """Raises TypeError, with `name`, unless the layer is of one of `kinds`.

    No subclass: it may compute something else.
    """
    if type(layer) not in kinds:
        *others, last = [kind.__name__ for kind in kinds]
        expected = f"{', '.join(others)} or {last}" if others else last
        raise TypeError(f"{name}: expected {expected}, got {type(layer).__name__}")


def affine_of(norm: Any, name: str) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) in float64 that the normalisation applies in evaluation.

    Raises, with `name`, TypeError where it is none of `NORMS`, ValueError where it keeps no running
    statistics, and UserError where they give no numbers, such as those of a negative variance.
    """
    require_kind(norm, NORMS, name)
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(f"{name}: expected a normalisation with running statistics, it has none")
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    if not bool((scale.isfinite() & shift.isfinite()).all()):
        raise UserError(f"{name}: expected statistics that normalise, they give NaN or infinity")
    return scale, shift


def _onednn_takes(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.float32:
        return True
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float16 and torch.ops.mkldnn._is_mkldnn_fp16_supported()


class Conv(nn.Module):
    """A convolution with what follows it: (N, in, H, W) to (N, out, h, w).

    Args:
        conv: the convolution, whose weights are copied.
        norm: the normalisation after it, or None; an identity where it is folded already.
        relu: whether a ReLU ends it.
        name: of the convolution in its network, for errors.
        dtype: of the weights.
        layout: of the weights.

    Raises ValueError where the padding is no number of zeros, TypeError where `conv` or `norm` is
    another kind of layer.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: nn.Module | None = None,
        *,
        relu: bool = False,
        name: str,
        dtype: torch.dtype,
        layout: str,
    ) -> None:
        super().__init__()
        require_kind(conv, (nn.Conv2d,), name)
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(f"{name}: expected a padding of zeros by number, got {conv.padding!r}")
        weight = conv.weight.detach().double()
        bias = None if conv.bias is None else conv.bias.detach().double()
        if norm is not None and type(norm) is not nn.Identity:
            scale, shift = affine_of(norm, name)
            weight = weight * scale[:, None, None, None]
            bias = shift if bias is None else shift + bias * scale
        self.register_buffer("weight", weight.to(dtype))
        self.register_buffer("bias", None if bias is None else bias.to(dtype))
        self.relu = relu
        self.padding, self.stride = list(conv.padding), list(conv.stride)
        self.dilation, self.groups = list(conv.dilation), conv.groups
        self._layout = layout
        self._prepare()

    def forward(self, x: Tensor, added: Tensor | None = None, *, into: bool = False) -> Tensor:
        """conv(x) + bias (+ `added`) (, ReLU). With `into` the result may take `added`'s memory."""
        if torch.compiler.is_compiling() or not x.numel():
            return self._plain(x, added)
        if self._onednn:
            return self._by_onednn(x, added, into)
        fused = x.is_cuda and x.dtype in _CUDNN_DTYPES and self.groups == 1 and self._cudnn
        if fused and self.relu and torch.backends.cudnn.is_available():
            return self._by_cudnn(x, added)
        return self._plain(x, added)

    def extra_repr(self) -> str:
        out, into, *kernel = self.weight.shape
        return f"{into * self.groups}, {out}, kernel_size={tuple(kernel)}, relu={self.relu}"

    def _plain(self, x: Tensor, added: Tensor | None) -> Tensor:
        x = F.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )
        if added is not None:
            x = x + added
        return F.relu(x) if self.relu else x

    def _by_onednn(self, x: Tensor, added: Tensor | None, into: bool) -> Tensor:
        form = (self._packed(x), self.bias, self.padding, self.stride, self.dilation, self.groups)
        relu = "relu" if self.relu else None
        if added is not None and (self.groups > 1 or self._layout != "channels_last"):
            # oneDNN's epilogue does not add there, and PyTorch's stand-in takes not every dtype.
            y = torch.ops.mkldnn._convolution_pointwise(x, *form, "none", [], "").add_(added)
            return y.relu_() if self.relu else y
        if added is None:
            return torch.ops.mkldnn._convolution_pointwise(x, *form, relu or "none", [], "")
        if into:
            return torch.ops.mkldnn._convolution_pointwise_.binary(
                added, x, *form, "add", 1, relu, [], ""
            )
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, added, *form, "add", None, relu, [], ""
        )

    def _by_cudnn(self, x: Tensor, added: Tensor | None) -> Tensor:
        form = (self.stride, self.padding, self.dilation, self.groups)
        try:
            if added is None:
                return torch.ops.aten.cudnn_convolution_relu(x, self.weight, self.bias, *form)
            return torch.ops.aten.cudnn_convolution_add_relu(
                x, self.weight, added, 1.0, self.bias, *form
            )
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # No engine of cuDNN's takes this: in float32 without TF32, for one. What is wrong with
            # the device or the tensors, the plain convolution says too.
            self._cudnn = False
            warnings.warn(
                f"cuDNN has no fused convolution in {str(x.dtype).removeprefix('torch.')} for this "
                f"layer, so the plain one runs: {str(error).splitlines()[0]}",
                stacklevel=2,
            )
            return self._plain(x, added)

    # oneDNN's packed weights stand beside the plain ones and not in their place, so that the module
    # can be saved, copied, moved and exported as any other. They are packed for a shape: packed
    # without one, a 1x1 convolution of 1024 channels takes ten times as long.

    def _packed(self, x: Tensor) -> Tensor:
        if self._layout != "channels_last":
            return self.weight  # with packed weights, oneDNN gives channels_last
        if not is_watched(self.weight):
            return self.weight
        marks = marks_of(self.weight)
        weight, of, packed = self._by_shape.get(x.shape, (None, None, None))
        if packed is None or weight is not self.weight or of != marks:
            # Threads that come here at the same time pack the same.
            if packed is None and len(self._by_shape) >= MOST_SHAPES:
                return self.weight
            form = (self.padding, self.stride, self.dilation, self.groups)
            packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *form, x.shape)
            self._by_shape[x.shape] = (self.weight, marks, packed)
        return packed

    def forget(self) -> None:
        """Drop the packed weights."""
        self._by_shape: dict[torch.Size, tuple[Tensor, tuple[int, int], Tensor]] = {}

    def _prepare(self) -> None:
        self.forget()
        self._onednn = _onednn_takes(self.weight)
        self._cudnn = True  # until it refuses
        # oneDNN packs what is contiguous faster, and takes its layout from the images.
        layout = LAYOUTS[self._layout] if self.weight.is_cuda else torch.contiguous_format
        self.weight = self.weight.contiguous(memory_format=layout)

    def _apply(self, fn: Any, recurse: bool = True) -> "Conv":
        super()._apply(fn, recurse)
        self._prepare()
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._prepare()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_by_shape"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._prepare()


class Linear(nn.Module):
    """A linear layer or 1×1 convolution, (N, in) to (N, out). Its bias is taken `times` times."""

    weight: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear | nn.Conv2d, *, times: int, dtype: torch.dtype) -> None:
        super().__init__()
        weight = linear.weight.detach().flatten(1)
        bias = torch.zeros(len(weight)) if linear.bias is None else times * linear.bias.detach()
        self.register_buffer("weight", weight.to(dtype, copy=True).t())
        self.register_buffer("bias", bias.to(linear.weight.device, dtype))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Affine(nn.Module):
    """Batch normalisation that no convolution stands before, and its ReLU: (N, C, H, W) to same."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.Module, *, name: str, dtype: torch.dtype) -> None:
        super().__init__()
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        for buffer, value in zip(("scale", "shift"), affine_of(norm, name), strict=True):
            self.register_buffer(buffer, value.to(wide))

    def forward(self, x: Tensor) -> Tensor:
        return ran_kernels.affine_relu(x, self.scale, self.shift)

    def of_sum(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """a + b beside what ``forward`` gives for it."""
        return ran_kernels.add_affine_relu(a, b, self.scale, self.shift)


@dataclass(frozen=True)
class Maker:
    """Makes layers of one dtype and of a layout of `LAYOUTS`; `fuse_gate` is ``ran.deploy``'s."""

    dtype: torch.dtype
    layout: str
    fuse_gate: bool = False

    def conv(
        self,
        conv: nn.Conv2d,
        norm: nn.Module | None = None,
        *,
        relu: bool = False,
        name: str,
    ) -> Conv:
        """As Conv."""
        return Conv(conv, norm, relu=relu, name=name, dtype=self.dtype, layout=self.layout)

    def linear(self, linear: nn.Linear | nn.Conv2d, name: str, times: int = 1) -> Linear:
        """As Linear. Raises ValueError where a convolution is more than a linear layer."""
        require_kind(linear, (nn.Linear, nn.Conv2d), name)
        if isinstance(linear, nn.Conv2d) and not is_pointwise(linear):
            raise ValueError(f"{name}: expected a plain 1×1 convolution, got {linear}")
        return Linear(linear, times=times, dtype=self.dtype)

    def affine(self, norm: nn.Module, name: str) -> Affine:
        """As Affine."""
        return Affine(norm, name=name, dtype=self.dtype)
