#include <limits>
#include <vector>

#include "../cbam.h"
#include "lanes.h"
#include "share.h"

namespace ran::cpu {
namespace {

// Positions whose spatial gate is kept in the cache while all channels pass: maps up to 64×64.
constexpr int64_t kTile = 4096;

// out = x * sc * ss (+ shortcut), not below `lowest`: 0 with a ReLU, else -infinity. NaN passes.
template <typename V>
RAN_INLINE V gated(V x, V channel, V spatial, V lowest) {
  const V v = x * channel * spatial;
  return v < lowest ? lowest : v;
}

template <typename V>
RAN_INLINE V gated(V x, V channel, V spatial, V shortcut, V lowest) {
  const V v = x * channel * spatial + shortcut;
  return v < lowest ? lowest : v;
}

// (C, HW) of one sample: `channels` maps, of which the gates of kTile positions at a time are made.
template <bool kShortcut, typename T>
RAN_SIMD void gate_maps(
    const T* x,
    const T* channel_logits,
    const T* spatial_logits,
    const T* shortcut,
    T* out,
    int64_t channels,
    int64_t hw,
    accumulate_t<T> lowest,
    accumulate_t<T>* channel,
    bool streamed) {
  using A = accumulate_t<T>;
  using V = vec_t<T>;
  A spatial[kTile];
  const V least = splat<V>(lowest);
  fill_gate(channel_logits, channel, channels);
  for (int64_t p = 0; p < hw; p += kTile) {
    const int64_t n = std::min(kTile, hw - p);
    fill_gate(spatial_logits ? spatial_logits + p : nullptr, spatial, n);
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t start = c * hw + p;
      const V sc = splat<V>(channel[c]);
      for_vectors(n, [&](int64_t i, int64_t, auto lanes) RAN_INLINE_LAMBDA {
        const int64_t at = start + i;
        const V v = load(x + at, lanes);
        const V ss = load(spatial + i, lanes);
        if constexpr (kShortcut) {
          put(out + at, gated(v, sc, ss, load(shortcut + at, lanes), least), lanes, streamed);
        } else {
          put(out + at, gated(v, sc, ss, least), lanes, streamed);
        }
      });
    }
  }
}

// (HW, C) of one sample: `rows` positions.
template <bool kShortcut, typename T>
RAN_SIMD void gate_rows(
    const T* x,
    const T* channel_logits,
    const T* spatial_logits,
    const T* shortcut,
    T* out,
    int64_t rows,
    int64_t channels,
    accumulate_t<T> lowest,
    accumulate_t<T>* channel,
    bool streamed) {
  using A = accumulate_t<T>;
  using V = vec_t<T>;
  A spatial[kTile];
  const V least = splat<V>(lowest);
  fill_gate(channel_logits, channel, channels);
  for (int64_t p = 0; p < rows; p += kTile) {
    const int64_t n = std::min(kTile, rows - p);
    fill_gate(spatial_logits ? spatial_logits + p : nullptr, spatial, n);
    for (int64_t r = 0; r < n; ++r) {
      const int64_t start = (p + r) * channels;
      const V ss = splat<V>(spatial[r]);
      for_vectors(channels, [&](int64_t i, int64_t, auto lanes) RAN_INLINE_LAMBDA {
        const int64_t at = start + i;
        const V v = load(x + at, lanes);
        const V sc = load(channel + i, lanes);
        if constexpr (kShortcut) {
          put(out + at, gated(v, sc, ss, load(shortcut + at, lanes), least), lanes, streamed);
        } else {
          put(out + at, gated(v, sc, ss, least), lanes, streamed);
        }
      });
    }
  }
}

template <bool kShortcut, typename T>
void run(const FeatureShape& shape, const CbamGate& a) {
  using A = accumulate_t<T>;
  const int64_t c = shape.c;
  const int64_t hw = shape.hw;
  const A lowest = a.relu ? A(0) : -std::numeric_limits<A>::infinity();
  const T* channel = static_cast<const T*>(a.channel_logits);
  const T* spatial = static_cast<const T*>(a.spatial_logits);
  const bool streamed = streams(
      static_cast<T*>(a.out),
      shape.channels_last ? c : hw,
      (kShortcut ? 3 : 2) * shape.n * c * hw);
  const auto part = [&](int64_t sample, int64_t begin, int64_t end) {
    const int64_t at = sample * c * hw + begin * (shape.channels_last ? c : hw);
    const T* x = static_cast<const T*>(a.x) + at;
    const T* shortcut = kShortcut ? static_cast<const T*>(a.shortcut) + at : nullptr;
    T* out = static_cast<T*>(a.out) + at;
    const T* sc = channel ? channel + sample * c : nullptr;
    const T* ss = spatial ? spatial + sample * hw : nullptr;
    std::vector<A> gate(c);
    if (shape.channels_last) {
      ss = ss ? ss + begin : nullptr;
      gate_rows<kShortcut>(x, sc, ss, shortcut, out, end - begin, c, lowest, gate.data(), streamed);
    } else {
      sc = sc ? sc + begin : nullptr;
      gate_maps<kShortcut>(x, sc, ss, shortcut, out, end - begin, hw, lowest, gate.data(), streamed);
    }
  };
  if (shape.channels_last) {
    share(shape.n, hw, c, part);
  } else {
    share(shape.n, c, hw, part);
  }
}

}  // namespace

void cbam_gate(DType dtype, const FeatureShape& shape, const CbamGate& args) {
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    args.shortcut ? run<true, T>(shape, args) : run<false, T>(shape, args);
  });
}

}  // namespace ran::cpu
