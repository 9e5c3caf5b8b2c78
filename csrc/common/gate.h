// The arithmetic of attention_gate, written once for CUDA's scalars and the CPU's vectors.
#pragma once

#include "dtype.h"

namespace ran {

// out = (offset + M) * T, where offset is 1 with attention residual learning and 0 without it.
// Wang et al., CVPR 2017, equations 3 and 1.
template <typename V>
RAN_HOST_DEVICE V gate(V mask, V trunk, V offset) {
  return (offset + mask) * trunk;
}

// d out / d T = offset + M
template <typename V>
RAN_HOST_DEVICE V gate_grad_trunk(V grad, V mask, V offset) {
  return grad * (offset + mask);
}

// d out / d logits = T * M * (1 - M) for M = sigmoid(logits)
template <typename V>
RAN_HOST_DEVICE V gate_grad_logits(V grad, V mask, V trunk, V one) {
  return grad * trunk * (mask * (one - mask));
}

}  // namespace ran
