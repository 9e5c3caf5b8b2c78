// Entry points of the kernels of upsample and upsample_add. All buffers of a call have one layout,
// contiguous or channels_last.
#pragma once

#include <cstdint>
#include <functional>

#include "common/dtype.h"

namespace ran {

// A bilinear interpolation of n images from h x w to height x width.
struct UpsampleShape {
  int64_t n;
  int64_t channels;
  int64_t h;
  int64_t w;
  int64_t height;
  int64_t width;
  bool align_corners;
  bool channels_last;
};

struct UpsampleForward {
  const void* x;
  const void* skip;  // null where nothing is added
  void* out;
  UpsampleShape shape;
};

struct UpsampleBackward {
  const void* grad;
  void* grad_x;
  UpsampleShape shape;
};

namespace cpu {
// A row is a line of an image's width: of one channel where contiguous, of all in channels_last.
// Each function tabulates the taps and returns what computes the rows [begin, end) of its result;
// the caller shares them out among threads.
using ComputeRows = std::function<void(int64_t begin, int64_t end)>;
ComputeRows upsample(DType dtype, const UpsampleForward& args);
ComputeRows upsample_backward(DType dtype, const UpsampleBackward& args);
}  // namespace cpu

namespace cuda {
// Launches on `stream` of the current device. Returns a cudaError_t.
int upsample(DType dtype, const UpsampleForward& args, void* stream);
int upsample_backward(DType dtype, const UpsampleBackward& args, void* stream);
}  // namespace cuda

}  // namespace ran
