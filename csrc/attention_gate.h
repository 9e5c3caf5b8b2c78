// Entry points of attention_gate's kernels. Every buffer holds n elements in one common order, so
// contiguous, channels_last and any other dense layout are the same flat loop.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace ran {

struct AttentionGateForward {
  const void* logits;
  const void* trunk;
  void* out;
  int64_t n;
  bool residual;
};

struct AttentionGateBackward {
  const void* grad;
  const void* logits;
  const void* trunk;
  void* grad_logits;
  void* grad_trunk;
  int64_t n;
  bool residual;
};

namespace cpu {
// Computes elements [begin, end); the caller shares the range out among threads.
void attention_gate(DType dtype, const AttentionGateForward& args, int64_t begin, int64_t end);
void attention_gate_backward(
    DType dtype, const AttentionGateBackward& args, int64_t begin, int64_t end);
}  // namespace cpu

namespace cuda {
// Launches on `stream` of the current device. Returns a cudaError_t.
int attention_gate(DType dtype, const AttentionGateForward& args, void* stream);
int attention_gate_backward(DType dtype, const AttentionGateBackward& args, void* stream);
}  // namespace cuda

}  // namespace ran
