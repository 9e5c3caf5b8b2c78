// attention_gate with the "mixed" activation; the grouped ones are in attention_gate_groups.cpp.
#include "../attention_gate.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../common/tensor.h"
#include "attention_gate_groups.h"
#include "stream.h"

namespace ran::cpu {
namespace {

// Threads get whole blocks, so that each starts where it can stream: two lines of 16-bit elements.
constexpr int64_t kBlock = 64;

// Calls f(begin, end) for ranges of [0, n) on PyTorch's threads.
template <typename F>
void share_elements(int64_t n, F&& f) {
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  torch::stable::parallel_for(0, blocks, kGrain / kBlock, [&](int64_t begin, int64_t end) {
    f(begin * kBlock, std::min(end * kBlock, n));
    fence();
  });
}

template <typename T>
RAN_SIMD void forward(
    const T* logits, const T* trunk, T* out, int64_t n, accumulate_t<T> offset, bool streamed) {
  using V = vec_t<T>;
  const V base = splat<V>(offset);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t rest = n - i;
    const V mask = sigmoid(load_some(logits + i, rest));
    put_some(out + i, gate(mask, load_some(trunk + i, rest), base), rest, streamed);
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
    accumulate_t<T> offset,
    bool streamed) {
  using V = vec_t<T>;
  const V base = splat<V>(offset);
  const V one = splat<V>(accumulate_t<T>(1));
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t rest = n - i;
    const V g = load_some(grad + i, rest);
    const V mask = sigmoid(load_some(logits + i, rest));
    const V to_logits = gate_grad_sigmoid(g, mask, load_some(trunk + i, rest), one);
    put_some(grad_logits + i, to_logits, rest, streamed);
    put_some(grad_trunk + i, gate_grad_trunk(g, mask, base), rest, streamed);
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
    const bool streamed = streams(out, kBlock, 3 * shape.numel());
    share_elements(shape.numel(), [&](int64_t begin, int64_t end) {
      forward<T>(logits + begin, trunk + begin, out + begin, end - begin, a.residual, streamed);
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
    const bool streamed = streams(grad_logits, kBlock, 5 * shape.numel()) &&
        streams(grad_trunk, kBlock, 5 * shape.numel());
    share_elements(shape.numel(), [&](int64_t begin, int64_t end) {
      backward<T>(
          grad + begin,
          logits + begin,
          trunk + begin,
          grad_logits + begin,
          grad_trunk + begin,
          end - begin,
          a.residual,
          streamed);
    });
  });
}

}  // namespace ran::cpu
