"""Residual Attention Networks and ResNets with CBAM in PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .program import is_program

if TYPE_CHECKING or not is_program():
    from .attention import AttentionFeatures, AttentionModule, SoftMaskBranch
    from .cbam import CbamGates, CbamResNet
    from .cbam_registry import (
        cbam_resnet18,
        cbam_resnet34,
        cbam_resnet50,
        cbam_resnet101,
        cbam_resnext50_32x4d,
        cbam_resnext101_32x4d,
        cbam_wide_resnet18_1_5,
        cbam_wide_resnet18_2,
    )
    from .deployment import Deployed, deploy
    from .network import ResidualAttentionNetwork
    from .pretrained import from_pretrained, save_pretrained
    from .profile import count_multiply_adds, count_parameters
    from .registry import (
        attention56,
        attention56_cifar,
        attention56_cifar_pool,
        attention56_cifar_wide,
        attention92,
        attention92_448,
        attention92_cifar,
        attention92_cifar_pool,
        attention92_cifar_wide,
        attention128,
        attention128_cifar,
        attention164,
        attention164_cifar,
        attention200,
        attention236,
        attention236_cifar,
        attention452,
        attention452_cifar,
        attentionnext56,
        attentionnext92,
        create_model,
        list_models,
    )
    from .spec import NetworkSpec
    from .weights import LoadReport, load_checkpoint

if TYPE_CHECKING:
    from .api import train
    from .evaluation import evaluate
    from .exporting import export
    from .masks import plot_masks
    from .prediction import predict

__all__ = [
    "AttentionFeatures",
    "AttentionModule",
    "CbamGates",
    "CbamResNet",
    "Deployed",
    "LoadReport",
    "NetworkSpec",
    "ResidualAttentionNetwork",
    "SoftMaskBranch",
    "attention56",
    "attention56_cifar",
    "attention56_cifar_pool",
    "attention56_cifar_wide",
    "attention92",
    "attention92_448",
    "attention92_cifar",
    "attention92_cifar_pool",
    "attention92_cifar_wide",
    "attention128",
    "attention128_cifar",
    "attention164",
    "attention164_cifar",
    "attention200",
    "attention236",
    "attention236_cifar",
    "attention452",
    "attention452_cifar",
    "attentionnext56",
    "attentionnext92",
    "cbam_resnet18",
    "cbam_resnet34",
    "cbam_resnet50",
    "cbam_resnet101",
    "cbam_resnext50_32x4d",
    "cbam_resnext101_32x4d",
    "cbam_wide_resnet18_1_5",
    "cbam_wide_resnet18_2",
    "count_multiply_adds",
    "count_parameters",
    "create_model",
    "deploy",
    "evaluate",
    "export",
    "from_pretrained",
    "list_models",
    "load_checkpoint",
    "plot_masks",
    "predict",
    "save_pretrained",
    "train",
]

#: What the commands do, by the module it is in: imported when it is asked for, because networks
#: need neither matplotlib nor the readers of data.
_COMMANDS = {
    "evaluate": "evaluation",
    "export": "exporting",
    "plot_masks": "masks",
    "predict": "prediction",
    "train": "api",
}


#: Where the other names are, for a program of which ``is_program`` is true.
_NETWORKS = (
    *("attention", "cbam", "cbam_registry", "deployment", "network", "pretrained", "profile"),
    *("registry", "spec", "weights"),
)


def __getattr__(name: str) -> Any:
    if name in _COMMANDS:
        return getattr(import_module(f".{_COMMANDS[name]}", __name__), name)
    if name in __all__:
        for module in _NETWORKS:
            if hasattr(found := import_module(f".{module}", __name__), name):
                return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
