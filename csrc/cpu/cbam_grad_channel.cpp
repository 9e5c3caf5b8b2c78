// Second pass of CBAM's backward:  grad_channel = sc (1 - sc) sum over HW of G x.
#include <vector>

#include "../cbam.h"
#include "cbam_incoming.h"
#include "share.h"

namespace ran::cpu {
namespace {

// sc (1 - sc) sum, for n channels
template <typename T>
RAN_INLINE void finish(
    const T* channel_logits, const accumulate_t<T>* sums, T* grad_channel, int64_t n) {
  for_vectors(n, [&](int64_t i, int64_t, auto lanes) RAN_INLINE_LAMBDA {
    const auto sc = sigmoid(load(channel_logits + i, lanes));
    store(grad_channel + i, sc * (1 - sc) * load(sums + i, lanes), lanes);
  });
}

// (C, HW) of one sample: the maps of channels [begin, end).
template <bool kGrad, typename T>
RAN_SIMD void maps_pass(
    const CbamGradChannel& a,
    const FeatureShape& shape,
    int64_t sample,
    int64_t begin,
    int64_t end,
    accumulate_t<T>* sums) {
  using V = vec_t<T>;
  const int64_t hw = shape.hw;
  const T* grad = kGrad ? static_cast<const T*>(a.incoming.grad) + sample * shape.c * hw : nullptr;
  const T* x = static_cast<const T*>(a.x) + sample * shape.c * hw;
  IncomingTile<T> tile;
  for (int64_t p = 0; p < hw; p += kIncomingTile) {
    const int64_t n = std::min(kIncomingTile, hw - p);
    fill_incoming(tile, a.incoming, shape, sample, p, n);
    for (int64_t c = begin; c < end; ++c) {
      const int64_t start = c * hw + p;
      const VecI channel = splat<VecI>(static_cast<int32_t>(c));
      V parts[2] = {};
      const auto add = [&](int64_t i, int part, auto lanes) RAN_INLINE_LAMBDA {
        const V g = load_grad<kGrad>(grad, start + i, lanes);
        const V arriving = incoming_along_map(g, tile, i, channel, lanes);
        parts[part] += fresh(arriving * load(x + start + i, lanes), V{}, lanes);
      };
      int64_t i = 0;
      for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
        add(i, 0, Full{});
        add(i + kLanes, 1, Full{});
      }
      const auto rest = [&](int64_t j, int64_t, auto lanes)
                            RAN_INLINE_LAMBDA { add(j, 0, lanes); };
      for_vectors(n, rest, i);
      const auto sum = sum_lanes(parts[0] + parts[1]);
      sums[c - begin] = p ? sums[c - begin] + sum : sum;
    }
  }
  const int64_t first = sample * shape.c + begin;
  finish(
      static_cast<const T*>(a.channel_logits) + first,
      sums,
      static_cast<T*>(a.grad_channel) + first,
      end - begin);
}

// (HW, C) of one sample: channels [begin, end), rows added up a few at a time. Behind the sums of a
// tile are the totals: a running sum of thousands of float32 loses digits.
template <bool kGrad, typename T>
RAN_SIMD void rows_pass(
    const CbamGradChannel& a,
    const FeatureShape& shape,
    int64_t sample,
    int64_t begin,
    int64_t end,
    accumulate_t<T>* sums) {
  using V = vec_t<T>;
  const int64_t c = shape.c;
  const int64_t channels = end - begin;
  accumulate_t<T>* totals = sums + channels;
  IncomingTile<T> tile;
  for (int64_t p = 0; p < shape.hw; p += kIncomingTile) {
    const int64_t n = std::min(kIncomingTile, shape.hw - p);
    const int64_t start = (sample * shape.hw + p) * c + begin;
    const T* grad = kGrad ? static_cast<const T*>(a.incoming.grad) + start : nullptr;
    const T* x = static_cast<const T*>(a.x) + start;
    fill_incoming(tile, a.incoming, shape, sample, p, n);
    const auto add = [&](int64_t row, auto count) RAN_INLINE_LAMBDA {
      for_vectors(channels, [&](int64_t i, int64_t, auto lanes) RAN_INLINE_LAMBDA {
        V sum{};
        for (int64_t r = row; r < row + count.value; ++r) {
          __builtin_prefetch(x + (r + count.value) * c + i);
          const V g = load_grad<kGrad>(grad, r * c + i, lanes);
          const V arriving = incoming_along_row(g, tile, r, i, begin);
          sum += arriving * load(x + r * c + i, lanes);
        }
        sum = fresh(sum, V{}, lanes);
        store(sums + i, load(sums + i, lanes) + sum, lanes);
      });
    };
    int64_t row = 0;
    for (; row + 4 <= n; row += 4) {
      add(row, std::integral_constant<int, 4>{});
    }
    for (; row < n; ++row) {
      add(row, std::integral_constant<int, 1>{});
    }
    for (int64_t i = 0; i < channels; ++i) {
      totals[i] += sums[i];
      sums[i] = 0;
    }
  }
  const int64_t first = sample * c + begin;
  finish(
      static_cast<const T*>(a.channel_logits) + first,
      totals,
      static_cast<T*>(a.grad_channel) + first,
      channels);
}

template <bool kGrad, typename T>
void run(const FeatureShape& shape, const CbamGradChannel& a) {
  const auto part = [&](int64_t sample, int64_t begin, int64_t end) {
    std::vector<accumulate_t<T>> sums(2 * (end - begin));
    const auto pass = shape.channels_last ? rows_pass<kGrad, T> : maps_pass<kGrad, T>;
    pass(a, shape, sample, begin, end, sums.data());
  };
  if (shape.channels_last) {
    share_channels(shape, part);
  } else {
    share(shape.n, shape.c, shape.hw, part);
  }
}

}  // namespace

void cbam_grad_channel(DType dtype, const FeatureShape& shape, const CbamGradChannel& args) {
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    args.incoming.grad ? run<true, T>(shape, args) : run<false, T>(shape, args);
  });
}

}  // namespace ran::cpu
