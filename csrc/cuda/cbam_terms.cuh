// What CBAM's kernels need of a channel or a position, loaded once and used for many elements.
#pragma once

#include "../cbam.h"
#include "kernel.cuh"

namespace ran::cuda {

// sigmoid(logits[first ... first + V - 1]), or 1 without logits.
template <int V, typename T, typename A>
__device__ __forceinline__ void gates(const T* logits, int64_t first, A (&gate)[V]) {
  if (logits == nullptr) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      gate[i] = A(1);
    }
    return;
  }
  load(logits + first, gate);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    gate[i] = sigmoid(gate[i]);
  }
}

// d sigmoid(logit) / d logit, times grad
template <typename A>
__device__ __forceinline__ A grad_logit(A grad, A gate) {
  return grad * (gate * (A(1) - gate));
}

// The gradient that goes back through a gate, and through a mean and a maximum over the index that
// the kernel runs along. Of a channel, or of a position:
//   gradient = incoming * gate + mean + (at == winner) max
template <typename A>
struct BackTerm {
  A gate;
  A mean;
  A max;
  int winner;  // meets no index if max is 0

  __device__ __forceinline__ A operator()(A incoming, int at) const {
    return incoming * gate + mean + (at == winner ? max : A(0));
  }
};

// BackTerms of V neighbours from `first`, with the mean's gradient shared out by `share`. The
// pointers lead to the first neighbour's mean and maximum; null ones leave them out.
template <int V, typename T, typename A>
__device__ __forceinline__ void back_terms(
    const T* logits,
    const T* grad_mean,
    const T* grad_max,
    const int32_t* winner,
    A share,
    int64_t first,
    BackTerm<A> (&term)[V]) {
  A gate[V];
  A mean[V] = {};
  A max[V] = {};
  int at[V];
  gates(logits, first, gate);
  if (winner != nullptr) {
    load(grad_mean, mean);
    load(grad_max, max);
    load(winner, at);
  }
#pragma unroll
  for (int i = 0; i < V; ++i) {
    term[i] = {gate[i], mean[i] * share, max[i], winner != nullptr ? at[i] : -1};
  }
}

// Kernel-side copy of CbamIncoming: its terms of the positions.
template <typename T>
struct Incoming {
  using A = accumulate_t<T>;
  const T* spatial_logits;
  const T* grad_maps;
  const int32_t* spatial_index;
  int64_t hw;
  A share;  // 1 / C

  explicit Incoming(const CbamIncoming& in, const FeatureShape& shape)
      : spatial_logits(static_cast<const T*>(in.spatial_logits)),
        grad_maps(static_cast<const T*>(in.grad_maps)),
        spatial_index(in.spatial_index),
        hw(shape.hw),
        share(A(1) / static_cast<A>(shape.c)) {}

  template <int V>
  __device__ __forceinline__ void positions(int64_t n, int p, BackTerm<A> (&term)[V]) const {
    const int64_t at = n * hw + p;
    const T* const max = grad_maps + n * hw + at;  // (n, 0, p) of (N, 2, HW)
    const auto* const winner = spatial_index == nullptr ? nullptr : spatial_index + at;
    back_terms(spatial_logits, max + hw, max, winner, share, at, term);
  }
};

inline bool aligned(const CbamIncoming& in) {
  return aligned(in.grad, in.spatial_logits, in.grad_maps, in.spatial_index);
}

}  // namespace ran::cuda
