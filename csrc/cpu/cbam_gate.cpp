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

// `positions` of `channels` of one sample, of which the gates of kTile positions at a time are made.
// Channels_last walks along the channels of a position, else along the positions of a channel, whose
// maps lie `hw` apart: what runs along has a factor for every element, the other one for them all.
template <bool kShortcut, bool kChannelsLast, typename T>
RAN_SIMD void gate_sample(
    const T* x,
    const T* channel_logits,
    const T* spatial_logits,
    const T* shortcut,
    T* out,
    int64_t channels,
    int64_t positions,
    int64_t hw,
    accumulate_t<T> lowest,
    accumulate_t<T>* channel,
    bool streamed) {
  using A = accumulate_t<T>;
  using V = vec_t<T>;
  A spatial[kTile];
  const V least = splat<V>(lowest);
  fill_gate(channel_logits, channel, channels);
  for (int64_t p = 0; p < positions; p += kTile) {
    const int64_t n = std::min(kTile, positions - p);
    fill_gate(spatial_logits ? spatial_logits + p : nullptr, spatial, n);
    const A* along = kChannelsLast ? channel : spatial;
    const A* across = kChannelsLast ? spatial : channel;
    for (int64_t row = 0; row < (kChannelsLast ? n : channels); ++row) {
      const int64_t start = kChannelsLast ? (p + row) * channels : row * hw + p;
      const V factor = splat<V>(across[row]);
      for_vectors(
          kChannelsLast ? channels : n, [&](int64_t i, int64_t, auto lanes) RAN_INLINE_LAMBDA {
            const int64_t at = start + i;
            const V v = load(x + at, lanes);
            const V factors = load(along + i, lanes);
            const V sc = kChannelsLast ? factors : factor;
            const V ss = kChannelsLast ? factor : factors;
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
      gate_sample<kShortcut, true>(
          x, sc, ss ? ss + begin : ss, shortcut, out, c, end - begin, hw, lowest, gate.data(), streamed);
    } else {
      gate_sample<kShortcut, false>(
          x, sc ? sc + begin : sc, ss, shortcut, out, end - begin, hw, hw, lowest, gate.data(), streamed);
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
