"""Residual Attention Networks in PyTorch."""

from .attention import AttentionFeatures, AttentionModule, SoftMaskBranch
from .network import ResidualAttentionNetwork
from .registry import (
    attention56,
    attention56_cifar_pool,
    attention56_cifar_wide,
    attention92,
    attention92_cifar_pool,
    attention92_cifar_wide,
    create_model,
    list_models,
)
from .spec import NetworkSpec

__all__ = [
    "AttentionFeatures",
    "AttentionModule",
    "NetworkSpec",
    "ResidualAttentionNetwork",
    "SoftMaskBranch",
    "attention56",
    "attention56_cifar_pool",
    "attention56_cifar_wide",
    "attention92",
    "attention92_cifar_pool",
    "attention92_cifar_wide",
    "create_model",
    "list_models",
]
