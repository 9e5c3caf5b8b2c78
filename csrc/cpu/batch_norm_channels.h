// What batch normalisation's kernels know of every channel, ready to be multiplied with.
#pragma once

#include <limits>
#include <vector>

#include "../batch_norm.h"
#include "../common/batch_norm.h"
#include "lanes.h"

namespace ran::cpu {

template <typename A>
struct ChannelFactors {
  ChannelFactors(const BatchNormChannels& given, int64_t channels)
      : mean(static_cast<const A*>(given.mean)), invstd(channels), scale(channels), bias(channels) {
    const A* variance = static_cast<const A*>(given.variance);
    const A* weight = static_cast<const A*>(given.weight);
    for (int64_t c = 0; c < channels; ++c) {
      invstd[c] = inverse_deviation(variance[c], given.eps);
      scale[c] = weight ? invstd[c] * weight[c] : invstd[c];
    }
    if (given.bias) {
      std::copy_n(static_cast<const A*>(given.bias), channels, bias.data());
    }
  }

  const A* mean;
  std::vector<A> invstd;
  std::vector<A> scale;
  std::vector<A> bias;
};

// One channel's in all lanes, or the lanes' channels'.
template <typename V>
struct Affine {
  V mean;
  V scale;
  V bias;
};

template <typename A>
struct AffineOf {
  explicit AffineOf(const ChannelFactors<A>& of)
      : mean(of.mean), scale(of.scale.data()), bias(of.bias.data()) {}

  RAN_INLINE auto channel(int64_t c) const {
    using V = typename VecOf<A>::type;
    return Affine<V>{splat<V>(mean[c]), splat<V>(scale[c]), splat<V>(bias[c])};
  }
  template <typename Lanes>
  RAN_INLINE auto columns(int64_t c, Lanes lanes) const {
    using V = typename VecOf<A>::type;
    return Affine<V>{load(mean + c, lanes), load(scale + c, lanes), load(bias + c, lanes)};
  }

  const A* mean;
  const A* scale;
  const A* bias;
};

// What a result must exceed for the ReLU, if there is one, to let a gradient through.
template <typename T>
accumulate_t<T> passing_above(bool relu) {
  // No number is at most NaN.
  return relu ? kVanishes<T> : std::numeric_limits<accumulate_t<T>>::quiet_NaN();
}

// g where the result is not at most `above`: a NaN passes.
template <typename V>
RAN_INLINE V passing(V g, V result, V above) {
  return result <= above ? V{} : g;
}

}  // namespace ran::cpu
