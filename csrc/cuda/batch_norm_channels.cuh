// What batch normalisation's kernels need of a channel.
#pragma once

#include <limits>

#include "../batch_norm.h"
#include "../common/batch_norm.h"
#include "map.cuh"

namespace ran::cuda {

// What a channel is normalised with.
template <typename A>
struct Affine {
  A mean;
  A scale;
  A bias;

  __device__ __forceinline__ A operator()(A x) const {
    return normalise(x, mean, scale, bias);
  }
};

// Kernel-side copy of BatchNormChannels.
template <typename A>
struct Norm {
  const A* mean;
  const A* variance;
  const A* weight;
  const A* bias;
  double eps;
  bool packed;  // whether V neighbours of each may be loaded together

  explicit Norm(const BatchNormChannels& given)
      : mean(static_cast<const A*>(given.mean)),
        variance(static_cast<const A*>(given.variance)),
        weight(static_cast<const A*>(given.weight)),
        bias(static_cast<const A*>(given.bias)),
        eps(given.eps),
        packed(aligned(given.mean, given.variance, given.weight, given.bias)) {}

  __device__ __forceinline__ A invstd(int c) const {
    return inverse_deviation(variance[c], eps);
  }

  // Of V neighbouring channels, and the inverse deviations beside.
  template <int V>
  __device__ __forceinline__ void operator()(int c, Affine<A> (&to)[V], A (&inverse)[V]) const {
    A center[V];
    A spread[V];
    A factor[V];
    A offset[V];
    neighbours(mean, c, A(0), center);
    neighbours(variance, c, A(0), spread);
    neighbours(weight, c, A(1), factor);
    neighbours(bias, c, A(0), offset);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      inverse[i] = inverse_deviation(spread[i], eps);
      to[i] = {center[i], inverse[i] * factor[i], offset[i]};
    }
  }

  // V neighbours, or `absent` where there are none.
  template <int V>
  __device__ __forceinline__ void neighbours(const A* from, int c, A absent, A (&to)[V]) const {
    if (from != nullptr && packed) {
      load(from + c, to);
      return;
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      to[i] = from != nullptr ? from[c + i] : absent;
    }
  }
};

// What a result must exceed for the ReLU, if there is one, to let a gradient through.
template <typename T>
accumulate_t<T> passing_above(bool relu) {
  // No number is at most NaN.
  return relu ? kVanishes<T> : std::numeric_limits<accumulate_t<T>>::quiet_NaN();
}

// g where the result is not at most `above`: a NaN passes.
template <typename A>
__device__ __forceinline__ A passing(A g, A result, A above) {
  return result <= above ? A(0) : g;
}

// The most rows of a matrix, with room for a block's last step.
constexpr int64_t kMostRows = int64_t{1} << 30;

// As `map`, where what belongs to a channel is the same in all samples: with channels_last the batch
// is one sample, so that a block loads its channels' terms for more rows.
template <typename Op>
int map_batch(const Op& op, const FeatureShape& shape, bool packed, void* stream) {
  FeatureShape batch = shape;
  if (shape.channels_last && shape.n * shape.hw <= kMostRows) {
    batch.hw = shape.n * shape.hw;
    batch.n = 1;
  }
  return map(op, batch, packed, stream);
}

}  // namespace ran::cuda
