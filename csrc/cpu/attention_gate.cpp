#include "../attention_gate.h"

#include <algorithm>

#include "../common/gate.h"
#include "simd.h"

namespace ran::cpu {
namespace {

template <typename T>
RAN_SIMD void forward(const T* logits, const T* trunk, T* out, int64_t n, accumulate_t<T> offset) {
  using V = vec_t<T>;
  const V base = splat<V>(offset);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    store(out + i, gate(sigmoid(load(logits + i)), load(trunk + i), base));
  }
  if (const int64_t rest = n - i; rest > 0) {
    const V mask = sigmoid(load_partial(logits + i, rest));
    store_partial(out + i, gate(mask, load_partial(trunk + i, rest), base), rest);
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
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const V g = load(grad + i);
    const V mask = sigmoid(load(logits + i));
    store(grad_logits + i, gate_grad_logits(g, mask, load(trunk + i), one));
    store(grad_trunk + i, gate_grad_trunk(g, mask, base));
  }
  if (const int64_t rest = n - i; rest > 0) {
    const V g = load_partial(grad + i, rest);
    const V mask = sigmoid(load_partial(logits + i, rest));
    const V t = load_partial(trunk + i, rest);
    store_partial(grad_logits + i, gate_grad_logits(g, mask, t, one), rest);
    store_partial(grad_trunk + i, gate_grad_trunk(g, mask, base), rest);
  }
}

}  // namespace

void attention_gate(DType dtype, const AttentionGateForward& a, int64_t begin, int64_t end) {
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    forward<T>(
        static_cast<const T*>(a.logits) + begin,
        static_cast<const T*>(a.trunk) + begin,
        static_cast<T*>(a.out) + begin,
        end - begin,
        a.residual);
  });
}

void attention_gate_backward(
    DType dtype, const AttentionGateBackward& a, int64_t begin, int64_t end) {
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    backward<T>(
        static_cast<const T*>(a.grad) + begin,
        static_cast<const T*>(a.logits) + begin,
        static_cast<const T*>(a.trunk) + begin,
        static_cast<T*>(a.grad_logits) + begin,
        static_cast<T*>(a.grad_trunk) + begin,
        end - begin,
        a.residual);
  });
}

}  // namespace ran::cpu
