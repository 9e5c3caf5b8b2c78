// Entry points of batch normalisation's kernels: Ioffe and Szegedy, ICML 2015.
//
// x and every tensor of its shape (N, C, H, W) are dense in one common layout, and have one dtype.
// What there is one of a channel (C,) is in the type that this dtype is computed in. A null pointer
// leaves its term out. The arithmetic is in common/batch_norm.h, once for all passes: the
// backward decides by it which results the ReLU has clipped, and must come to the same bits.
//
//   invstd = 1 / sqrt(variance + eps)     scale = invstd weight
//   out    = (x - mean) scale + bias (+ shortcut) (, ReLU)
#pragma once

#include "cbam.h"

namespace ran {

// What a channel is normalised with.
struct BatchNormChannels {
  const void* mean;
  const void* variance;
  const void* weight;  // or null: 1
  const void* bias;    // or null: 0
  double eps;
};

// Mean and biased variance of a channel over N, H, W, of x or of the sum  x + addend  as rounded to its
// dtype. From deviations from a number near the mean, never from squares of x itself.
struct BatchNormStatistics {
  const void* x;
  const void* addend;  // or null
  void* sum;           // as x, null exactly where addend is
  void* mean;
  void* variance;
};

struct BatchNormApply {
  const void* x;
  const void* shortcut;  // as x, or null
  BatchNormChannels channels;
  void* out;  // as x
  bool relu;
};

// First pass of the backward. With g = grad, or with `relu` grad where the result is not <= 0, else 0,
//   sum_grad = sum of g,  sum_grad_xhat = sum of g (x - mean) invstd       over N, H, W
// They are the gradients of bias and weight. The ReLU's result is `out`, or without it computed again
// from x. With `out` g is written to `masked` for the other pass, and is the shortcut's gradient.
struct BatchNormReduce {
  const void* grad;
  const void* x;
  const void* out;  // or null
  BatchNormChannels channels;
  void* masked;  // as x, null exactly where out is
  void* sum_grad;
  void* sum_grad_xhat;
  bool relu;
};

// Second pass:  grad_x = scale (g - (sum_grad + (x - mean) invstd sum_grad_xhat) / count) (+ addend)
// Without the sums, for statistics that do not depend on x:  grad_x = scale g (+ addend)
struct BatchNormGrad {
  const void* grad;
  const void* x;
  const void* addend;  // as x, or null
  BatchNormChannels channels;
  const void* sum_grad;       // or null
  const void* sum_grad_xhat;  // null exactly where sum_grad is
  int64_t count;
  void* grad_x;  // as x
  bool relu;     // as in the first pass, computed again from x; false where grad is `masked`
};

namespace cpu {
// Each shares its work out among PyTorch's threads itself, in pieces that do not depend on how many
// there are, so that the results do not either.
void batch_norm_statistics(DType dtype, const FeatureShape& shape, const BatchNormStatistics& args);
void batch_norm_apply(DType dtype, const FeatureShape& shape, const BatchNormApply& args);
void batch_norm_reduce(DType dtype, const FeatureShape& shape, const BatchNormReduce& args);
void batch_norm_grad(DType dtype, const FeatureShape& shape, const BatchNormGrad& args);
}  // namespace cpu

namespace cuda {
// Each launches on `stream` of the current device and returns a cudaError_t. `workspace` holds the
// partial results of two-stage reductions: as many bytes as the function beside it says, 0 for none.
int64_t batch_norm_statistics_workspace(DType dtype, const FeatureShape& shape);
int64_t batch_norm_reduce_workspace(DType dtype, const FeatureShape& shape);

int batch_norm_statistics(
    DType dtype,
    const FeatureShape& shape,
    const BatchNormStatistics& args,
    void* workspace,
    void* stream);
int batch_norm_apply(
    DType dtype, const FeatureShape& shape, const BatchNormApply& args, void* stream);
int batch_norm_reduce(
    DType dtype,
    const FeatureShape& shape,
    const BatchNormReduce& args,
    void* workspace,
    void* stream);
int batch_norm_grad(DType dtype, const FeatureShape& shape, const BatchNormGrad& args, void* stream);
}  // namespace cuda

}  // namespace ran
