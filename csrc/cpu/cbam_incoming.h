// The gradient that arrives at x * sc, for the second and the third pass of CBAM's backward:
//   G = g ss + grad_maps[1] / C + (channel == spatial_index) grad_maps[0]
#pragma once

#include "../cbam.h"
#include "lanes.h"

namespace ran::cpu {

// Positions of which the factors of G are kept at a time: whole maps up to 64×64. Their 64 KiB in
// float leave the first-level cache, which costs less than jumping between maps more often.
constexpr int64_t kIncomingTile = 4096;

// The factors of G at up to kIncomingTile positions, with the neutral value of every absent term.
template <typename T>
struct IncomingTile {
  using A = accumulate_t<T>;
  A gate[kIncomingTile];     // ss
  A mean[kIncomingTile];     // grad_maps[1] / C
  A maximum[kIncomingTile];  // grad_maps[0]
  int32_t channel[kIncomingTile];
};

// Fills `tile` for n positions of a sample from p on.
template <typename T>
RAN_INLINE void fill_incoming(
    IncomingTile<T>& tile,
    const CbamIncoming& incoming,
    const FeatureShape& shape,
    int64_t sample,
    int64_t p,
    int64_t n) {
  using A = accumulate_t<T>;
  const int64_t hw = shape.hw;
  const T* logits = static_cast<const T*>(incoming.spatial_logits);
  const T* maps = static_cast<const T*>(incoming.grad_maps);
  const T* maximum = maps ? maps + sample * 2 * hw + p : nullptr;
  fill_gate(logits ? logits + sample * hw + p : nullptr, tile.gate, n);
  fill_scaled(maximum, A(1), tile.maximum, n);
  fill_scaled(maximum ? maximum + hw : nullptr, 1 / static_cast<A>(shape.c), tile.mean, n);
  fill_index(maps ? incoming.spatial_index + sample * hw + p : nullptr, tile.channel, n);
}

// g, or 0 where there is none.
template <bool kGrad, typename T, typename Lanes>
RAN_INLINE vec_t<T> load_grad(const T* grad, int64_t at, Lanes lanes) {
  if constexpr (kGrad) {
    return load(grad + at, lanes);
  } else {
    return vec_t<T>{};
  }
}

// v, with `value` added where position or channel `at` is among the lanes from i on.
template <typename V, typename A>
RAN_INLINE V add_at(V v, int64_t i, int64_t at, A value) {
  if (has(i, at)) {  // a map, and a position, has one maximum
    v += mask_for<V>(lane_of(i, at)) ? splat<V>(value) : V{};
  }
  return v;
}

// G at positions i of the tile, of one channel; `g` is the gradient there.
template <typename V, typename T, typename Lanes>
RAN_INLINE V incoming_along_map(
    V g, const IncomingTile<T>& tile, int64_t i, VecI channel, Lanes lanes) {
  const auto here = mask_for<V>(load_index(tile.channel + i, lanes) == channel);
  return g * load(tile.gate + i, lanes) + load(tile.mean + i, lanes) +
      (here ? load(tile.maximum + i, lanes) : V{});
}

// G at channels i of row r of the tile, counted from channel `first`.
template <typename V, typename T>
RAN_INLINE V incoming_along_row(
    V g, const IncomingTile<T>& tile, int64_t r, int64_t i, int64_t first) {
  return add_at(g * tile.gate[r] + tile.mean[r], i, tile.channel[r] - first, tile.maximum[r]);
}

}  // namespace ran::cpu
