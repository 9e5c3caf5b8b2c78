// Entry points of attention_gate's kernels.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/gate.h"

namespace ran {

// A tensor seen as (outer, members, inner): the `members` of a group are reduced together, `inner`
// apart in memory. All buffers of a call have one layout.
//   kMixed            no groups: (1, numel, 1)
//   kChannel, NCHW    (N, C, HW)         kChannel, channels_last    (N HW, C, 1)
//   kSpatial, NCHW    (N C, HW, 1)       kSpatial, channels_last    (N, HW, C)
struct GateShape {
  Activation activation;
  int64_t outer;
  int64_t members;
  int64_t inner;

  int64_t numel() const {
    return outer * members * inner;
  }
};

struct AttentionGateForward {
  const void* logits;
  const void* trunk;
  void* out;
  bool residual;
};

struct AttentionGateBackward {
  const void* grad;
  const void* logits;
  const void* trunk;
  void* grad_logits;
  void* grad_trunk;
  bool residual;
};

namespace cpu {
// Each shares its work out among PyTorch's threads, in pieces that do not depend on their number.
void attention_gate(DType dtype, const GateShape& shape, const AttentionGateForward& args);
void attention_gate_backward(
    DType dtype, const GateShape& shape, const AttentionGateBackward& args);
}  // namespace cpu

namespace cuda {
// Launches on `stream` of the current device. Returns a cudaError_t.
int attention_gate(
    DType dtype, const GateShape& shape, const AttentionGateForward& args, void* stream);
int attention_gate_backward(
    DType dtype, const GateShape& shape, const AttentionGateBackward& args, void* stream);
}  // namespace cuda

}  // namespace ran
