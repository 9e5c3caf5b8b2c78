#include <vector>

#include "../cbam.h"
#include "lanes.h"
#include "pool_columns.h"
#include "share.h"

namespace ran::cpu {
namespace {

// Positions of a tile of maps: runs of memory long enough for the prefetcher, sums in the cache.
constexpr int64_t kTile = 1024;

// (C, HW) of one sample: n positions of all channels.
template <typename T>
RAN_SIMD void pool_tile(
    const T* x,
    const accumulate_t<T>* gate,
    T* maximum,
    T* mean,
    int32_t* index,
    int64_t n,
    int64_t channels,
    int64_t hw) {
  accumulate_t<T> totals[kTile];
  accumulate_t<T> sums[kTile];
  accumulate_t<T> tops[kTile];
  int32_t places[kTile];
  const Columns<T> kept{totals, sums, tops, places};
  pool_columns<true, T>(x, gate, mean, maximum, index, channels, hw, n, kept);
}

// (HW, C) of one sample: kRows positions at a time, which share the loads of the gate.
template <int kRows, typename T>
RAN_INLINE void pool_some_rows(
    const T* x,
    const accumulate_t<T>* gate,
    T* maximum,
    T* mean,
    int32_t* index,
    int64_t channels) {
  using A = accumulate_t<T>;
  using V = vec_t<T>;
  const V lowest = splat<V>(kLowest<V>);
  V sums[kRows] = {};
  V tops[kRows];
  VecI places[kRows];
  for (int r = 0; r < kRows; ++r) {
    tops[r] = lowest;
    places[r] = iota();
  }
  for_vectors(channels, [&](int64_t i, int64_t, auto lanes) RAN_INLINE_LAMBDA {
    const V factor = load(gate + i, lanes);
    const VecI position = iota() + static_cast<int32_t>(i);
    for (int r = 0; r < kRows; ++r) {
      const T* from = x + r * channels + i;
      __builtin_prefetch(from + kRows * channels);
      const V v = load(from, lanes) * factor;
      const V candidate = fresh(v, lowest, lanes);
      const auto higher = candidate > tops[r];
      sums[r] += fresh(v, V{}, lanes);
      tops[r] = higher ? candidate : tops[r];
      places[r] = narrow_mask(higher) ? position : places[r];
    }
  });
  for (int r = 0; r < kRows; ++r) {
    const A sum = sum_lanes(sums[r]);
    const A top = max_lanes(tops[r]);
    const VecI candidates = narrow_mask(tops[r] == top) ? places[r] : splat<VecI>(kNowhere);
    store_scalar(maximum + r, top);
    store_scalar(mean + r, sum / static_cast<A>(channels));
    index[r] = min_lanes(candidates);
    let_nan_win(sum, x + r * channels, channels, 1, gate, maximum + r, index + r);
  }
}

template <typename T>
RAN_SIMD void pool_rows(
    const T* x,
    const accumulate_t<T>* gate,
    T* maximum,
    T* mean,
    int32_t* index,
    int64_t rows,
    int64_t channels) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    pool_some_rows<4>(x + r * channels, gate, maximum + r, mean + r, index + r, channels);
  }
  for (; r < rows; ++r) {
    pool_some_rows<1>(x + r * channels, gate, maximum + r, mean + r, index + r, channels);
  }
}

template <typename T>
RAN_SIMD void make_gate(const T* logits, accumulate_t<T>* gate, int64_t n) {
  fill_gate(logits, gate, n);
}

}  // namespace

void spatial_pool(DType dtype, const FeatureShape& shape, const SpatialPool& a) {
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t c = shape.c;
    const int64_t hw = shape.hw;
    // Positions of one sample, `unit` of which are an item of work.
    const int64_t unit = shape.channels_last ? 4 : std::min(kTile, hw);
    const int64_t items = (hw + unit - 1) / unit;
    share(shape.n, items, unit * c, [&](int64_t sample, int64_t begin, int64_t end) {
      const T* x = static_cast<const T*>(a.x) + sample * c * hw;
      const T* logits = static_cast<const T*>(a.channel_logits);
      T* maximum = static_cast<T*>(a.maps) + sample * 2 * hw;
      T* mean = maximum + hw;
      int32_t* index = a.index + sample * hw;
      std::vector<accumulate_t<T>> gate(c);
      make_gate(logits ? logits + sample * c : nullptr, gate.data(), c);
      if (shape.channels_last) {
        const int64_t p = begin * unit;
        const int64_t rows = std::min(end * unit, hw) - p;
        pool_rows(x + p * c, gate.data(), maximum + p, mean + p, index + p, rows, c);
        return;
      }
      for (int64_t p = begin * unit; p < std::min(end * unit, hw); p += unit) {
        const int64_t n = std::min(unit, hw - p);
        pool_tile(x + p, gate.data(), maximum + p, mean + p, index + p, n, c, hw);
      }
    });
  });
}

}  // namespace ran::cpu
