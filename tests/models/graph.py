"""Evaluates the authors' published graphs layer by layer, to compare the networks with.

The files in ``graphs`` list every layer of the four deploy graphs: name, type, inputs ("bottom"),
outputs ("top") and shape parameters. This evaluator knows the layer types and nothing of how the
networks are built.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GRAPHS = Path(__file__).parent / "graphs"
LEARNED = {"Convolution": nn.Conv2d, "BN": nn.BatchNorm2d, "InnerProduct": nn.Linear}


def load_graph(name: str) -> list[dict[str, Any]]:
    return json.loads((GRAPHS / f"{name}.json").read_text())


def _pool(x: Tensor, pool: str, kernel_size: int, stride: int) -> Tensor:
    """Caffe's pooling: no padding, sizes rounded up, windows cut at the border."""
    if pool == "AVE":
        assert x.shape[2:] == (kernel_size, kernel_size)
        return x.mean(dim=(2, 3), keepdim=True)
    size = [math.ceil((n - kernel_size) / stride) + 1 for n in x.shape[2:]]
    # Windows that hang over the border see minus infinity there.
    missing = [(n - 1) * stride + kernel_size - m for n, m in zip(size, x.shape[2:], strict=True)]
    x = F.pad(x, (0, missing[1], 0, missing[0]), value=-math.inf)
    return x.unfold(2, kernel_size, stride).unfold(3, kernel_size, stride).amax(dim=(4, 5))


def _axis_weights(size: int, target: int, like: Tensor) -> Tensor:
    """Matrix (target, size) of linear interpolation whose first and last points stay in place."""
    points = torch.arange(target).to(like) * ((size - 1) / max(target - 1, 1))
    return (1 - (points[:, None] - torch.arange(size).to(like)).abs()).clamp(min=0)


def _interpolate(x: Tensor, size: torch.Size) -> Tensor:
    rows = _axis_weights(x.shape[2], size[0], x)
    columns = _axis_weights(x.shape[3], size[1], x)
    return rows @ x @ columns.T


def evaluate(
    graph: list[dict[str, Any]], weights: dict[str, dict[str, Tensor]], x: Tensor
) -> dict[str, Tensor]:
    """Every output of the graph for x, with the tensors of ``weights`` by layer name."""
    blobs = {"data": x}
    for layer in graph:
        inputs = [blobs[name] for name in layer["bottom"]]
        params = layer.get("params", {})
        w = weights.get(layer["name"], {})
        match layer["type"]:
            case "Convolution":
                y = F.conv2d(
                    inputs[0],
                    w["weight"],
                    stride=params["stride"],
                    padding=params["pad"],
                    groups=params.get("group", 1),
                )
            case "BN":
                scale = w["weight"] / torch.sqrt(w["running_var"] + 1e-5)
                shift = w["bias"] - w["running_mean"] * scale
                y = inputs[0] * scale[:, None, None] + shift[:, None, None]
            case "ReLU":
                y = inputs[0].clamp(min=0)
            case "Sigmoid":
                y = 1 / (1 + torch.exp(-inputs[0]))
            case "Pooling":
                y = _pool(inputs[0], **params)
            case "Interp":
                # The second input gives the size and nothing else.
                y = _interpolate(inputs[0], inputs[1].shape[2:])
            case "Eltwise":
                one, other = inputs
                y = one + other if params["operation"] == "SUM" else one * other
            case "InnerProduct":
                y = inputs[0].flatten(1) @ w["weight"].T + w["bias"]
            case "Softmax":
                y = inputs[0].softmax(dim=1)
            case unknown:
                raise NotImplementedError(unknown)
        # A ReLU writes over its input, which later layers then read.
        blobs[layer["top"][0]] = y
    return blobs


def multiply_adds(
    graph: list[dict[str, Any]], weights: dict[str, dict[str, Tensor]], x: Tensor
) -> int:
    """Multiply-adds of the graph's convolutions and of its classifier."""
    blobs = evaluate(graph, weights, x)
    return sum(
        blobs[layer["top"][0]].numel() * weights[layer["name"]]["weight"][0].numel()
        for layer in graph
        if layer["type"] in ("Convolution", "InnerProduct")
    )


def weights_for(
    graph: list[dict[str, Any]], model: nn.Module, x: Tensor
) -> dict[str, dict[str, Tensor]]:
    """The model's tensors by the graph's layer names, paired in the order both run in.

    In the graph a unit's shortcut runs last and a skip unit before the units of its level on the
    way up; here where it suits. If one pairing makes the two agree on random weights, they compute
    the same function.
    """
    order: list[str] = []
    kinds = tuple(LEARNED.values())
    hooks = [
        module.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, module in model.named_modules()
        if type(module) in kinds
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    for name in [name for name in order if ".shortcut" in name]:
        order.remove(name)
        unit = name.partition("shortcut")[0]
        last = max(i for i, other in enumerate(order) if other.startswith(unit))
        order.insert(last + 1, name)
    for name in [name for name in order if ".skip." in name]:
        order.remove(name)
        mask, _, rest = name.partition("skip.")
        up = f"{mask}up.{rest.partition('.')[0]}."
        order.insert(min(i for i, other in enumerate(order) if other.startswith(up)), name)
    learned = [layer for layer in graph if layer["type"] in LEARNED]
    weights = {}
    for layer, name in zip(learned, order, strict=True):
        module = model.get_submodule(name)
        assert isinstance(module, LEARNED[layer["type"]]), (layer["name"], name)
        weights[layer["name"]] = dict(module.state_dict())
    assert len(set(order)) == len(order)
    return weights
