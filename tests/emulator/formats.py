"""The element types as numpy sees them: bfloat16 has none there, and is kept as its bits."""

import numpy as np
from numpy.typing import NDArray

FLOAT64, FLOAT32, FLOAT16, BFLOAT16 = DTYPES = range(4)  # as DType in csrc/common/dtype.h
NAMES = ("float64", "float32", "float16", "bfloat16")
STORED = (np.float64, np.float32, np.float16, np.uint16)
BYTES = (8, 4, 2, 2)
#: Elements of a 16-byte access.
PACK = (2, 4, 8, 8)
#: Relative error of storing a value, and the smallest there is (of half a step).
STORING = (2.0**-53, 2.0**-24, 2.0**-11, 2.0**-8)
SMALLEST = (2.0**-1074, 2.0**-149, 2.0**-25, 2.0**-134)
#: Relative error of one operation, in the type that is computed in.
COMPUTING = (2.0**-53, 2.0**-24, 2.0**-24, 2.0**-24)
#: The type that is computed in.
COMPUTED = (np.float64, np.float32, np.float32, np.float32)

Array = NDArray


def encode(values: Array, dtype: int) -> Array:
    """float64 values as they are stored, rounded to nearest."""
    values = np.ascontiguousarray(values, np.float64)
    if dtype != BFLOAT16:
        return values.astype(STORED[dtype])
    single = values.astype(np.float32)
    bits = single.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    rounded[np.isnan(single)] = 0x7FC0
    return rounded


def decode(stored: Array, dtype: int) -> Array:
    """The float64 values of what is stored."""
    if dtype == BFLOAT16:
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float64)
