"""The operators' Triton kernels, one file an operator, imported at their first use."""
