// Entry points of CBAM's kernels: Woo et al., ECCV 2018.
//
// x and every tensor of its shape (N, C, H, W) are dense in one common layout: (N, C, HW) in memory,
// or (N, HW, C) with channels_last. Small tensors are contiguous: (N, C), (N, HW) and (N, 2, HW).
// All of them have one dtype, except the indices. A null pointer leaves its term out.
//
//   channel gate  sc = sigmoid(channel_logits)          (N, C)
//   spatial gate  ss = sigmoid(spatial_logits)          (N, HW)
//   out           = x * sc * ss (+ shortcut) (, ReLU)
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace ran {

struct FeatureShape {
  int64_t n;
  int64_t c;
  int64_t hw;
  bool channels_last;
};

// Mean and maximum over HW, and the first position of the maximum. A NaN is greater than any number.
struct ChannelPool {
  const void* x;
  void* mean;      // (N, C)
  void* max;       // (N, C)
  int32_t* index;  // (N, C): position in HW
};

// Maximum and mean over C of x * sc, and the first channel of the maximum.
struct SpatialPool {
  const void* x;
  const void* channel_logits;  // (N, C) or null
  void* maps;                  // (N, 2, HW): maximum, then mean
  int32_t* index;              // (N, HW): channel
};

struct CbamGate {
  const void* x;
  const void* channel_logits;  // (N, C) or null
  const void* spatial_logits;  // (N, HW) or null
  const void* shortcut;        // as x, or null
  void* out;                   // as x
  bool relu;
};

// First pass of the backward:  grad_spatial = ss (1 - ss) sum over C of g x sc,
// where g is grad, and with `out` given grad where out is not <= 0 (ReLU), else 0. Then g is written
// to `masked` for the other passes; it is the shortcut's gradient as well.
struct CbamGradSpatial {
  const void* grad;
  const void* x;
  const void* channel_logits;  // or null
  const void* spatial_logits;
  const void* out;     // or null
  void* grad_spatial;  // (N, HW)
  void* masked;        // as x, null exactly where out is
};

// The gradient that arrives at x * sc, in the second and the third pass:
//   G = g ss + grad_maps[1] / C + (channel == spatial_index) grad_maps[0]
// Each of the three terms may be absent (grad null, spatial_logits null: ss = 1, grad_maps null).
struct CbamIncoming {
  const void* grad;              // as x, or null
  const void* spatial_logits;    // (N, HW) or null
  const void* grad_maps;         // (N, 2, HW) or null
  const int32_t* spatial_index;  // (N, HW), null exactly where grad_maps is
};

// Second pass:  grad_channel = sc (1 - sc) sum over HW of G x
struct CbamGradChannel {
  CbamIncoming incoming;
  const void* x;
  const void* channel_logits;
  void* grad_channel;  // (N, C)
};

// Third pass:  grad_x = G sc + grad_mean / HW + (position == channel_index) grad_max
struct CbamGradX {
  CbamIncoming incoming;
  const void* channel_logits;    // or null: sc = 1
  const void* grad_mean;         // (N, C) or null
  const void* grad_max;          // (N, C), null exactly where grad_mean is
  const int32_t* channel_index;  // (N, C), null exactly where grad_mean is
  void* grad_x;                  // as x
};

namespace cpu {
// Each shares its work out among PyTorch's threads itself, in pieces that do not depend on how many
// there are, so that the results do not either.
void channel_pool(DType dtype, const FeatureShape& shape, const ChannelPool& args);
void spatial_pool(DType dtype, const FeatureShape& shape, const SpatialPool& args);
void cbam_gate(DType dtype, const FeatureShape& shape, const CbamGate& args);
void cbam_grad_spatial(DType dtype, const FeatureShape& shape, const CbamGradSpatial& args);
void cbam_grad_channel(DType dtype, const FeatureShape& shape, const CbamGradChannel& args);
void cbam_grad_x(DType dtype, const FeatureShape& shape, const CbamGradX& args);
}  // namespace cpu

namespace cuda {
// Each launches on `stream` of the current device and returns a cudaError_t. `workspace` holds the
// partial results of two-stage reductions: as many bytes as the function beside it says, 0 for none.
int64_t channel_pool_workspace(DType dtype, const FeatureShape& shape);
int64_t spatial_pool_workspace(DType dtype, const FeatureShape& shape);
int64_t cbam_grad_spatial_workspace(DType dtype, const FeatureShape& shape);
int64_t cbam_grad_channel_workspace(DType dtype, const FeatureShape& shape);

int channel_pool(
    DType dtype, const FeatureShape& shape, const ChannelPool& args, void* workspace, void* stream);
int spatial_pool(
    DType dtype, const FeatureShape& shape, const SpatialPool& args, void* workspace, void* stream);
int cbam_gate(DType dtype, const FeatureShape& shape, const CbamGate& args, void* stream);
int cbam_grad_spatial(
    DType dtype,
    const FeatureShape& shape,
    const CbamGradSpatial& args,
    void* workspace,
    void* stream);
int cbam_grad_channel(
    DType dtype,
    const FeatureShape& shape,
    const CbamGradChannel& args,
    void* workspace,
    void* stream);
int cbam_grad_x(DType dtype, const FeatureShape& shape, const CbamGradX& args, void* stream);
}  // namespace cuda

}  // namespace ran
