// attention_gate with the activations "channel" and "spatial", which standardise groups of logits.
#pragma once

#include <cuda_runtime.h>

#include "../attention_gate.h"

namespace ran::cuda {

int attention_gate_groups(
    DType dtype, const GateShape& shape, const AttentionGateForward& args, cudaStream_t stream);
int attention_gate_groups_backward(
    DType dtype, const GateShape& shape, const AttentionGateBackward& args, cudaStream_t stream);

}  // namespace ran::cuda
