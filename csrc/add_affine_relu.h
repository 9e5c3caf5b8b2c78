// Entry points of the kernels of add_affine_relu and affine_relu.
//
//   sum = a + b,  out = max(scale sum + shift, 0), of the sum before it is rounded
//
// a, b, sum and out (N, C, H, W) are dense in one common layout and have one dtype. scale and shift
// (C,) are in the type that this dtype is computed in.
#pragma once

#include "cbam.h"

namespace ran {

struct AddAffineRelu {
  const void* a;
  const void* b;  // null where nothing is added
  const void* scale;
  const void* shift;
  void* sum;  // null exactly where b is
  void* out;
};

namespace cpu {
// Shares its work out among PyTorch's threads itself.
void add_affine_relu(DType dtype, const FeatureShape& shape, const AddAffineRelu& args);
}  // namespace cpu

namespace cuda {
// Launches on `stream` of the current device. Returns a cudaError_t.
int add_affine_relu(
    DType dtype, const FeatureShape& shape, const AddAffineRelu& args, void* stream);
}  // namespace cuda

}  // namespace ran
