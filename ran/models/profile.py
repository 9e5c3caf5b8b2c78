"""What a network costs: its parameters and its multiply-adds."""

from itertools import chain

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from .modes import evaluating


def count_parameters(model: nn.Module) -> int:
    """Learnable parameters, batch normalisation's scale and shift included."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_multiply_adds(model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224)) -> int:
    """Multiply-adds of the convolutions and linear layers for one input of (C, H, W).

    Runs the model on the meta device: no arithmetic is done and the model stays as it is.
    Normalisation, activations, pooling, interpolation and gates are not counted, as is usual.
    """
    tensors = chain(model.named_parameters(), model.named_buffers())
    state = {name: tensor.to("meta") for name, tensor in tensors}
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), evaluating(model), counter:
        functional_call(model, state, torch.empty(1, *input_size, device="meta"))
    # The counter takes a multiply-add for two operations.
    return counter.get_total_flops() // 2
