"""Fused attention operators for convolutional networks."""

from .reference import attention_gate, attention_mask, upsample, upsample_add

__all__ = ["attention_gate", "attention_mask", "upsample", "upsample_add"]
