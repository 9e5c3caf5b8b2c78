// First pass of CBAM's backward:  grad_spatial = ss (1 - ss) sum over C of g x sc.
#include <vector>

#include "../cbam.h"
#include "lanes.h"
#include "share.h"

namespace ran::cpu {
namespace {

// Positions of a tile of maps, whose sums stay in the first-level cache while the channels pass.
constexpr int64_t kTile = 1024;

// What a ReLU that returned `out` lets through of `grad`.
template <typename V>
RAN_INLINE V let_through(V grad, V out) {
  return out <= 0 ? V{} : grad;
}

// The gradient at `at`: what the ReLU lets through, which is also written, or all of it.
template <bool kMasked, typename T, typename Lanes>
RAN_INLINE vec_t<T> arriving(
    const T* grad, const T* out, T* masked, int64_t at, Lanes lanes, bool streamed) {
  const vec_t<T> g = load(grad + at, lanes);
  if constexpr (kMasked) {
    const vec_t<T> passed = let_through(g, load(out + at, lanes));
    put(masked + at, passed, lanes, streamed);
    return passed;
  } else {
    return g;
  }
}

// ss (1 - ss) sum(i, slot), for n positions
template <typename T, typename F>
RAN_INLINE void finish(const T* spatial_logits, T* grad_spatial, int64_t n, F&& sum) {
  for_vectors(n, [&](int64_t i, int64_t slot, auto lanes) RAN_INLINE_LAMBDA {
    const auto ss = sigmoid(load(spatial_logits + i, lanes));
    store(grad_spatial + i, ss * (1 - ss) * sum(i, slot), lanes);
  });
}

// (C, HW) of one sample: n positions of all channels, several channels at a time.
template <bool kMasked, typename T>
RAN_SIMD void maps_pass(
    const T* grad,
    const T* x,
    const T* channel_logits,
    const T* spatial_logits,
    const T* out,
    T* grad_spatial,
    T* masked,
    int64_t n,
    int64_t channels,
    int64_t hw,
    accumulate_t<T>* gate,
    bool streamed) {
  using V = vec_t<T>;
  accumulate_t<T> sums[kTile];
  fill_gate(channel_logits, gate, channels);
  const auto add = [&](int64_t c, auto count) RAN_INLINE_LAMBDA {
    for_vectors(n, [&](int64_t i, int64_t slot, auto lanes) RAN_INLINE_LAMBDA {
      V sum{};
      for (int k = 0; k < count.value; ++k) {
        const int64_t at = (c + k) * hw + i;
        __builtin_prefetch(grad + at + count.value * hw);
        __builtin_prefetch(x + at + count.value * hw);
        const V g = arriving<kMasked>(grad, out, masked, at, lanes, streamed);
        sum += g * (load(x + at, lanes) * gate[c + k]);
      }
      store(sums + slot, c ? load(sums + slot) + sum : sum);
    });
  };
  int64_t c = 0;
  for (; c + 4 <= channels; c += 4) {
    add(c, std::integral_constant<int, 4>{});
  }
  for (; c < channels; ++c) {
    add(c, std::integral_constant<int, 1>{});
  }
  finish(spatial_logits, grad_spatial, n, [&](int64_t, int64_t slot) RAN_INLINE_LAMBDA {
    return load(sums + slot);
  });
}

// (HW, C) of one sample: `rows` positions, several sums at a time.
template <bool kMasked, typename T>
RAN_SIMD void rows_pass(
    const T* grad,
    const T* x,
    const T* channel_logits,
    const T* spatial_logits,
    const T* out,
    T* grad_spatial,
    T* masked,
    int64_t rows,
    int64_t channels,
    accumulate_t<T>* gate,
    bool streamed) {
  using V = vec_t<T>;
  constexpr int kSums = 4;
  accumulate_t<T> sums[kTile];
  fill_gate(channel_logits, gate, channels);
  for (int64_t row = 0; row < rows; row += kTile) {
    const int64_t n = std::min(kTile, rows - row);
    for (int64_t r = 0; r < n; ++r) {
      const int64_t start = (row + r) * channels;
      V parts[kSums] = {};
      const auto term = [&](int64_t i, auto lanes) RAN_INLINE_LAMBDA {
        const int64_t at = start + i;
        const V g = arriving<kMasked>(grad, out, masked, at, lanes, streamed);
        return fresh(g * (load(x + at, lanes) * load(gate + i, lanes)), V{}, lanes);
      };
      int64_t c = 0;
      for (; c + kSums * kLanes <= channels; c += kSums * kLanes) {
        for (int k = 0; k < kSums; ++k) {
          parts[k] += term(c + k * kLanes, Full{});
        }
      }
      const auto rest = [&](int64_t i, int64_t, auto lanes) RAN_INLINE_LAMBDA {
        parts[0] += term(i, lanes);
      };
      for_vectors(channels, rest, c);
      sums[r] = sum_lanes((parts[0] + parts[1]) + (parts[2] + parts[3]));
    }
    const auto sum = [&](int64_t i, int64_t) RAN_INLINE_LAMBDA { return load(sums + i); };
    finish(spatial_logits + row, grad_spatial + row, n, sum);
  }
}

template <bool kMasked, typename T>
void run(const FeatureShape& shape, const CbamGradSpatial& a) {
  const int64_t c = shape.c;
  const int64_t hw = shape.hw;
  const int64_t unit = shape.channels_last ? 4 : std::min(kTile, hw);
  const int64_t items = (hw + unit - 1) / unit;
  const T* channel = static_cast<const T*>(a.channel_logits);
  const bool streamed = kMasked &&
      streams(static_cast<T*>(a.masked), shape.channels_last ? c : hw, 4 * shape.n * c * hw);
  share(shape.n, items, unit * c, [&](int64_t sample, int64_t begin, int64_t end) {
    const int64_t first = begin * unit;
    const int64_t last = std::min(end * unit, hw);
    const T* sc = channel ? channel + sample * c : nullptr;
    std::vector<accumulate_t<T>> gate(c);
    const auto pass = [&](int64_t p, int64_t n) {
      const int64_t at = sample * c * hw + p * (shape.channels_last ? c : 1);
      const T* grad = static_cast<const T*>(a.grad) + at;
      const T* x = static_cast<const T*>(a.x) + at;
      const T* out = kMasked ? static_cast<const T*>(a.out) + at : nullptr;
      T* masked = kMasked ? static_cast<T*>(a.masked) + at : nullptr;
      const T* ss = static_cast<const T*>(a.spatial_logits) + sample * hw + p;
      T* result = static_cast<T*>(a.grad_spatial) + sample * hw + p;
      if (shape.channels_last) {
        rows_pass<kMasked>(grad, x, sc, ss, out, result, masked, n, c, gate.data(), streamed);
      } else {
        maps_pass<kMasked>(grad, x, sc, ss, out, result, masked, n, c, hw, gate.data(), streamed);
      }
    };
    if (shape.channels_last) {
      pass(first, last - first);
      return;
    }
    for (int64_t p = first; p < last; p += unit) {
      pass(p, std::min(unit, last - p));
    }
  });
}

}  // namespace

void cbam_grad_spatial(DType dtype, const FeatureShape& shape, const CbamGradSpatial& args) {
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    args.out ? run<true, T>(shape, args) : run<false, T>(shape, args);
  });
}

}  // namespace ran::cpu
