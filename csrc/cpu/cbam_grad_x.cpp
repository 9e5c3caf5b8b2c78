// Third pass of CBAM's backward:
//   grad_x = G sc + grad_mean / HW + (position == channel_index) grad_max
#include <vector>

#include "../cbam.h"
#include "cbam_incoming.h"
#include "share.h"

namespace ran::cpu {
namespace {

// The factors of grad_x of a sample's channels, with the neutral value of every absent term.
template <typename T>
struct Channels {
  using A = accumulate_t<T>;
  A* gate;     // sc
  A* mean;     // grad_mean / HW
  A* maximum;  // grad_max
  int32_t* position;
};

template <typename T>
RAN_INLINE void fill_channels(
    const Channels<T>& to, const CbamGradX& a, int64_t hw, int64_t first, int64_t n) {
  using A = accumulate_t<T>;
  const auto from = [&](const void* p) RAN_INLINE_LAMBDA {
    return p ? static_cast<const T*>(p) + first : nullptr;
  };
  fill_gate(from(a.channel_logits), to.gate, n);
  fill_scaled(from(a.grad_mean), 1 / static_cast<A>(hw), to.mean, n);
  fill_scaled(from(a.grad_max), A(1), to.maximum, n);
  fill_index(a.channel_index ? a.channel_index + first : nullptr, to.position, n);
}

// (C, HW) of one sample: the maps of channels [begin, end).
template <bool kGrad, typename T>
RAN_SIMD void maps_pass(
    const CbamGradX& a,
    const FeatureShape& shape,
    int64_t sample,
    int64_t begin,
    int64_t end,
    const Channels<T>& channels,
    bool streamed) {
  using A = accumulate_t<T>;
  using V = vec_t<T>;
  const int64_t hw = shape.hw;
  const T* grad = kGrad ? static_cast<const T*>(a.incoming.grad) + sample * shape.c * hw : nullptr;
  T* grad_x = static_cast<T*>(a.grad_x) + sample * shape.c * hw;
  fill_channels(channels, a, hw, sample * shape.c + begin, end - begin);
  IncomingTile<T> tile;
  for (int64_t p = 0; p < hw; p += kIncomingTile) {
    const int64_t n = std::min(kIncomingTile, hw - p);
    fill_incoming(tile, a.incoming, shape, sample, p, n);
    for (int64_t c = begin; c < end; ++c) {
      const int64_t start = c * hw + p;
      const V gate = splat<V>(channels.gate[c - begin]);
      const V mean = splat<V>(channels.mean[c - begin]);
      const VecI channel = splat<VecI>(static_cast<int32_t>(c));
      const A maximum = channels.maximum[c - begin];
      const int64_t position = channels.position[c - begin] - p;
      for_vectors(n, [&](int64_t i, int64_t, auto lanes) RAN_INLINE_LAMBDA {
        const V g = load_grad<kGrad>(grad, start + i, lanes);
        const V arriving = incoming_along_map(g, tile, i, channel, lanes);
        const V result = add_at(arriving * gate + mean, i, position, maximum);
        put(grad_x + start + i, result, lanes, streamed);
      });
    }
  }
}

// (HW, C) of one sample: rows [begin, end).
template <bool kGrad, typename T>
RAN_SIMD void rows_pass(
    const CbamGradX& a,
    const FeatureShape& shape,
    int64_t sample,
    int64_t begin,
    int64_t end,
    const Channels<T>& channels,
    bool streamed) {
  using A = accumulate_t<T>;
  using V = vec_t<T>;
  const int64_t c = shape.c;
  fill_channels(channels, a, shape.hw, sample * c, c);
  IncomingTile<T> tile;
  for (int64_t p = begin; p < end; p += kIncomingTile) {
    const int64_t n = std::min(kIncomingTile, end - p);
    fill_incoming(tile, a.incoming, shape, sample, p, n);
    for (int64_t r = 0; r < n; ++r) {
      const int64_t start = (sample * shape.hw + p + r) * c;
      const T* grad = kGrad ? static_cast<const T*>(a.incoming.grad) + start : nullptr;
      T* grad_x = static_cast<T*>(a.grad_x) + start;
      const VecI position = splat<VecI>(static_cast<int32_t>(p + r));
      for_vectors(c, [&](int64_t i, int64_t, auto lanes) RAN_INLINE_LAMBDA {
        const V g = load_grad<kGrad>(grad, i, lanes);
        const V arriving = incoming_along_row(g, tile, r, i, 0);
        const VecI here = load_index(channels.position + i, lanes) == position;
        const V top = mask_for<V>(here) ? load(channels.maximum + i, lanes) : V{};
        const V result =
            arriving * load(channels.gate + i, lanes) + load(channels.mean + i, lanes) + top;
        put(grad_x + i, result, lanes, streamed);
      });
    }
  }
}

template <bool kGrad, typename T>
void run(const FeatureShape& shape, const CbamGradX& a) {
  using A = accumulate_t<T>;
  const int64_t row = shape.channels_last ? shape.c : shape.hw;
  const int64_t moved = (kGrad ? 2 : 1) * shape.n * shape.c * shape.hw;
  const bool streamed = streams(static_cast<T*>(a.grad_x), row, moved);
  const auto part = [&](int64_t sample, int64_t begin, int64_t end) {
    std::vector<A> factors(3 * shape.c);
    std::vector<int32_t> position(shape.c);
    const Channels<T> channels{
        factors.data(), factors.data() + shape.c, factors.data() + 2 * shape.c, position.data()};
    const auto pass = shape.channels_last ? rows_pass<kGrad, T> : maps_pass<kGrad, T>;
    pass(a, shape, sample, begin, end, channels, streamed);
  };
  if (shape.channels_last) {
    share(shape.n, shape.hw, shape.c, part);
  } else {
    share(shape.n, shape.c, shape.hw, part);
  }
}

}  // namespace

void cbam_grad_x(DType dtype, const FeatureShape& shape, const CbamGradX& args) {
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    args.incoming.grad ? run<true, T>(shape, args) : run<false, T>(shape, args);
  });
}

}  // namespace ran::cpu
