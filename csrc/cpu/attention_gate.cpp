// attention_gate with the "mixed" activation; the grouped ones are in attention_gate_groups.cpp.
#include "../attention_gate.h"

#include <torch/csrc/stable/ops.h>

#include "attention_gate_groups.h"
#include "simd.h"

namespace ran::cpu {
namespace {

// Elements below which another thread costs more than it brings.
constexpr int64_t kGrain = 32768;

template <typename T>
RAN_SIMD void forward(const T* logits, const T* trunk, T* out, int64_t n, accumulate_t<T> offset) {
  using V = vec_t<T>;
  const V base = splat<V>(offset);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t rest = n - i;
    const V mask = sigmoid(load_some(logits + i, rest));
    store_some(out + i, gate(mask, load_some(trunk + i, rest), base), rest);
  }
}

template <typename T>
RAN_SIMD void backward(
    const T* grad,
    const T* logits,
    const T* trunk,
    T* grad_logits,
    T* grad_trunk,
    int64_t n,
    accumulate_t<T> offset) {
  using V = vec_t<T>;
  const V base = splat<V>(offset);
  const V one = splat<V>(accumulate_t<T>(1));
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t rest = n - i;
    const V g = load_some(grad + i, rest);
    const V mask = sigmoid(load_some(logits + i, rest));
    store_some(
        grad_logits + i, gate_grad_sigmoid(g, mask, load_some(trunk + i, rest), one), rest);
    store_some(grad_trunk + i, gate_grad_trunk(g, mask, base), rest);
  }
}

}  // namespace

void attention_gate(DType dtype, const GateShape& shape, const AttentionGateForward& a) {
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto* logits = static_cast<const T*>(a.logits);
    const auto* trunk = static_cast<const T*>(a.trunk);
    auto* out = static_cast<T*>(a.out);
    if (shape.activation != Activation::kMixed) {
      return forward_groups(shape, logits, trunk, out, a.residual);
    }
    torch::stable::parallel_for(0, shape.numel(), kGrain, [&](int64_t begin, int64_t end) {
      forward<T>(logits + begin, trunk + begin, out + begin, end - begin, a.residual);
    });
  });
}

void attention_gate_backward(DType dtype, const GateShape& shape, const AttentionGateBackward& a) {
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto* grad = static_cast<const T*>(a.grad);
    const auto* logits = static_cast<const T*>(a.logits);
    const auto* trunk = static_cast<const T*>(a.trunk);
    auto* grad_logits = static_cast<T*>(a.grad_logits);
    auto* grad_trunk = static_cast<T*>(a.grad_trunk);
    if (shape.activation != Activation::kMixed) {
      return backward_groups(shape, grad, logits, trunk, grad_logits, grad_trunk, a.residual);
    }
    torch::stable::parallel_for(0, shape.numel(), kGrain, [&](int64_t begin, int64_t end) {
      backward<T>(
          grad + begin,
          logits + begin,
          trunk + begin,
          grad_logits + begin,
          grad_trunk + begin,
          end - begin,
          a.residual);
    });
  });
}

}  // namespace ran::cpu
