"""A kernel that says which positions `norm_relu_conv`'s kernels read with a stride of 2."""

import triton
import triton.language as tl

from ran_kernels.triton.norm_relu_conv_kernels import read_at, used_by


@triton.jit
def positions_kernel(row, found, side, half):
    at = tl.arange(0, 8)
    given = tl.load(row + at)
    tl.store(found + at, read_at(given, side, side, half, half, 2))
    source, is_used = used_by(given, side, side, half, half, 2)
    tl.store(found + 8 + at, source)
    tl.store(found + 16 + at, is_used.to(tl.int64))
