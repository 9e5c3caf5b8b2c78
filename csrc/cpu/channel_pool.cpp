#include <limits>
#include <vector>

#include "../cbam.h"
#include "lanes.h"
#include "pool_columns.h"
#include "share.h"

namespace ran::cpu {
namespace {

// The maximum is located after it is known, within the block of a map that it was found in.
constexpr int64_t kBlock = 256;

// The first position of `value` in x[0, n).
template <typename T>
RAN_INLINE int32_t find(const T* x, int64_t n, accumulate_t<T> value) {
  VecI first = splat<VecI>(kNowhere);
  for_vectors(n, [&](int64_t i, int64_t, auto lanes) RAN_INLINE_LAMBDA {
    using V = vec_t<T>;
    const VecI position = iota() + static_cast<int32_t>(i);
    const V v = fresh(load(x + i, lanes), V{} + std::numeric_limits<float>::quiet_NaN(), lanes);
    const VecI here = narrow_mask(v == value) ? position : splat<VecI>(kNowhere);
    first = here < first ? here : first;
  });
  return min_lanes(first);
}

// (N, C, HW): every map is one run of memory.
template <typename T>
RAN_SIMD void pool_maps(
    const T* x, T* mean, T* maximum, int32_t* index, int64_t maps, int64_t hw) {
  using A = accumulate_t<T>;
  using V = vec_t<T>;
  constexpr int kSums = 4;  // enough additions in flight to hide their latency
  const V lowest = splat<V>(kLowest<V>);
  for (int64_t map = 0; map < maps; ++map, x += hw) {
    V sum{};
    A best = 0;
    int64_t best_block = -1;
    for (int64_t block = 0; block < hw; block += kBlock) {
      const int64_t n = std::min(kBlock, hw - block);
      const T* from = x + block;
      V sums[kSums] = {};
      V tops[kSums] = {lowest, lowest, lowest, lowest};
      int64_t i = 0;
      for (; i + kSums * kLanes <= n; i += kSums * kLanes) {
        for (int k = 0; k < kSums; ++k) {
          const V v = load(from + i + k * kLanes);
          sums[k] += v;
          tops[k] = greater(v, tops[k]);
        }
      }
      const auto add = [&](int64_t j, int64_t, auto lanes) RAN_INLINE_LAMBDA {
        const V v = load(from + j, lanes);
        sums[0] += fresh(v, V{}, lanes);
        tops[0] = greater(fresh(v, lowest, lanes), tops[0]);
      };
      for_vectors(n, add, i);
      sum += (sums[0] + sums[1]) + (sums[2] + sums[3]);
      const A top =
          max_lanes(greater(greater(tops[0], tops[1]), greater(tops[2], tops[3])));
      if (best_block < 0 || top > best) {
        best = top;
        best_block = block;
      }
    }
    const A total = sum_lanes(sum);
    store_scalar(mean + map, total / static_cast<A>(hw));
    store_scalar(maximum + map, best);
    const int64_t n = std::min(kBlock, hw - best_block);
    index[map] = static_cast<int32_t>(best_block) + find(x + best_block, n, best);
    let_nan_win<T>(total, x, hw, 1, nullptr, maximum + map, index + map);
  }
}

// (HW, C) of one sample: `channels` of its c.
template <typename T>
RAN_SIMD void pool_rows(
    const T* x,
    T* mean,
    T* maximum,
    int32_t* index,
    int64_t hw,
    int64_t c,
    int64_t channels,
    const Columns<T>& kept) {
  pool_columns<false, T>(x, nullptr, mean, maximum, index, hw, c, channels, kept);
}

}  // namespace

void channel_pool(DType dtype, const FeatureShape& shape, const ChannelPool& a) {
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto [n, c, hw, channels_last] = shape;
    const T* x = static_cast<const T*>(a.x);
    T* mean = static_cast<T*>(a.mean);
    T* maximum = static_cast<T*>(a.max);
    if (!channels_last) {
      share(1, n * c, hw, [&, hw = hw](int64_t, int64_t begin, int64_t end) {
        pool_maps(
            x + begin * hw, mean + begin, maximum + begin, a.index + begin, end - begin, hw);
      });
      return;
    }
    share_channels(shape, [&, c = c, hw = hw](int64_t sample, int64_t begin, int64_t end) {
      const int64_t channels = end - begin;
      const int64_t first = sample * c + begin;
      const int64_t size = padded(channels);
      std::vector<accumulate_t<T>> scratch(3 * size);
      std::vector<int32_t> places(size);
      const Columns<T> kept{
          scratch.data(), scratch.data() + size, scratch.data() + 2 * size, places.data()};
      const T* from = x + sample * hw * c + begin;
      pool_rows(
          from, mean + first, maximum + first, a.index + first, hw, c, channels, kept);
    });
  });
}

}  // namespace ran::cpu
