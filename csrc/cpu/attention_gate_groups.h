// attention_gate with the activations "channel" and "spatial", which standardise groups of logits.
#pragma once

#include "../attention_gate.h"

namespace ran::cpu {

template <typename T>
void forward_groups(const GateShape& shape, const T* logits, const T* trunk, T* out, bool residual);

template <typename T>
void backward_groups(
    const GateShape& shape,
    const T* grad,
    const T* logits,
    const T* trunk,
    T* grad_logits,
    T* grad_trunk,
    bool residual);

}  // namespace ran::cpu
