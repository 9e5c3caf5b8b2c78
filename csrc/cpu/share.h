// How the kernels on (N, C, H, W) share their work out among PyTorch's threads.
#pragma once

#include <algorithm>

#include "../cbam.h"
#include "../common/tensor.h"
#include "stream.h"

namespace ran::cpu {

// Channels that a thread takes at least of a channels_last sample: four cache lines of float.
constexpr int64_t kChannelBlock = 64;

// Calls f(sample, begin, end) for ranges that together cover `per_sample` items of every sample, an
// item being `elements` elements. Each range lies within one sample, so what a kernel prepares per
// sample is prepared once a thread. Where the ranges end depends on the number of threads: an item's
// result must not depend on the range it is in.
template <typename F>
void share(int64_t samples, int64_t per_sample, int64_t elements, F&& f) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, elements));
  torch::stable::parallel_for(
      0, samples * per_sample, grain, [&](int64_t begin, int64_t end) {
        while (begin < end) {
          const int64_t sample = begin / per_sample;
          const int64_t first = begin - sample * per_sample;
          const int64_t last = std::min(per_sample, end - sample * per_sample);
          f(sample, first, last);
          begin += last - first;
        }
        fence();  // some kernels stream their results
      });
}

// share() over ranges of channels of channels_last samples.
template <typename F>
void share_channels(const FeatureShape& shape, F&& f) {
  const int64_t blocks = (shape.c + kChannelBlock - 1) / kChannelBlock;
  const int64_t elements = shape.hw * std::min(kChannelBlock, shape.c);
  share(shape.n, blocks, elements, [&](int64_t sample, int64_t begin, int64_t end) {
    f(sample, begin * kChannelBlock, std::min(end * kChannelBlock, shape.c));
  });
}

}  // namespace ran::cpu
