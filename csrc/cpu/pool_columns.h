// Maximum and mean of columns: over the positions of a channels_last sample, one column a channel,
// and over the channels of a contiguous one, one column a position.
#pragma once

#include <algorithm>

#include "lanes.h"

namespace ran::cpu {

// The first of n values, `stride` apart, that is NaN once multiplied by its gate, or -1.
template <typename T>
RAN_INLINE int64_t find_nan(const T* x, int64_t n, int64_t stride, const accumulate_t<T>* gate) {
  for (int64_t i = 0; i < n; ++i) {
    const auto value = scalar(x + i * stride) * (gate ? gate[i] : 1);
    if (value != value) {
      return i;
    }
  }
  return -1;
}

// Maxima are found with comparisons that pass over NaN. But where a NaN takes part the sum is one,
// and then (it may also be infinity minus infinity) the NaN is looked for.
template <typename T>
RAN_INLINE void let_nan_win(
    accumulate_t<T> sum,
    const T* x,
    int64_t n,
    int64_t stride,
    const accumulate_t<T>* gate,
    T* maximum,
    int32_t* index) {
  const int64_t nan = sum != sum ? find_nan(x, n, stride, gate) : -1;
  if (nan >= 0) {
    store_scalar(maximum, sum);
    *index = static_cast<int32_t>(nan);
  }
}

// Rows summed up before they join the total: a running sum of thousands of float32 loses digits.
constexpr int64_t kRowChunk = 512;

// What pool_columns keeps for a column, in arrays padded to whole vectors.
template <typename T>
struct Columns {
  accumulate_t<T>* totals;
  accumulate_t<T>* sums;  // of the chunk
  accumulate_t<T>* tops;
  int32_t* places;
};

// `columns` columns of `rows` values x[r * stride] * gate[r]. The sums travel through the cache, so
// several rows are taken at a time.
template <bool kGate, typename T>
RAN_INLINE void pool_columns(
    const T* x,
    const accumulate_t<T>* gate,
    T* mean,
    T* maximum,
    int32_t* index,
    int64_t rows,
    int64_t stride,
    int64_t columns,
    const Columns<T>& kept) {
  using A = accumulate_t<T>;
  using V = vec_t<T>;
  const auto add = [&](int64_t r, int64_t chunk, auto count) RAN_INLINE_LAMBDA {
    const VecI here = splat<VecI>(static_cast<int32_t>(r));
    for_vectors(columns, [&](int64_t i, int64_t slot, auto lanes) RAN_INLINE_LAMBDA {
      V top = r ? load(kept.tops + slot) : splat<V>(kLowest<V>);
      VecI place = r ? load_index(kept.places + slot) : VecI{};
      V sum{};
      for (int k = 0; k < count.value; ++k) {
        const T* from = x + (r + k) * stride + i;
        __builtin_prefetch(from + count.value * stride);
        V v = load(from, lanes);
        if constexpr (kGate) {
          v = v * gate[r + k];
        }
        const auto higher = v > top;
        sum += v;
        top = higher ? v : top;
        place = narrow_mask(higher) ? here + k : place;
      }
      store(kept.sums + slot, r > chunk ? load(kept.sums + slot) + sum : sum);
      store(kept.tops + slot, top);
      store_index(kept.places + slot, place);
    });
  };
  for (int64_t chunk = 0; chunk < rows; chunk += kRowChunk) {
    const int64_t end = std::min(rows, chunk + kRowChunk);
    int64_t r = chunk;
    for (; r + 4 <= end; r += 4) {
      add(r, chunk, std::integral_constant<int, 4>{});
    }
    for (; r < end; ++r) {
      add(r, chunk, std::integral_constant<int, 1>{});
    }
    for (int64_t slot = 0; slot < columns; slot += kLanes) {
      const V sum = load(kept.sums + slot);
      store(kept.totals + slot, chunk ? load(kept.totals + slot) + sum : sum);
    }
  }
  for_vectors(columns, [&](int64_t i, int64_t slot, auto lanes) RAN_INLINE_LAMBDA {
    const V sum = load(kept.totals + slot);
    store(maximum + i, load(kept.tops + slot), lanes);
    store(mean + i, sum / static_cast<A>(rows), lanes);
    store_index(index + i, load_index(kept.places + slot), lanes);
    for (int lane = 0; lane < std::min<int64_t>(kLanes, columns); ++lane) {
      const int64_t at = i + lane;
      const A* gates = kGate ? gate : nullptr;
      let_nan_win(sum[lane], x + at, rows, stride, gates, maximum + at, index + at);
    }
  });
}

}  // namespace ran::cpu
