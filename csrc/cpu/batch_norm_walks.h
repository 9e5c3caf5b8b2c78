// Ways through (N, C, H, W) in which every channel has constants: position by position, and adding up.
//
// What is done at a position is an `op`: op.channel(c) are a channel's constants in all lanes,
// op.columns(c, lanes) those of the channels from c on, one a lane, and op(at, constants, lanes) deals
// with the vector of elements from `at` on. The loops have a copy of it: what they store may
// overwrite anything that has an address, for all that a compiler knows, and then is read again.
#pragma once

#include <vector>

#include "share.h"

namespace ran::cpu {

// ---- position by position -------------------------------------------------------------------

// (C, HW): the maps of channels [begin, end) of the sample that starts at `at`.
template <typename Op>
RAN_SIMD void walk_maps(Op op, int64_t at, int64_t hw, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; ++c) {
    const auto constants = op.channel(c);
    for_vectors(hw, [&](int64_t i, int64_t, auto lanes) RAN_INLINE_LAMBDA {
      op(at + c * hw + i, constants, lanes);
    });
  }
}

// (HW, C): rows from `at` on, two at a time, for which the constants are loaded once.
template <typename Op>
RAN_SIMD void walk_rows(Op op, int64_t at, int64_t channels, int64_t rows) {
  const auto together = [&](int64_t r, auto count) RAN_INLINE_LAMBDA {
    for_vectors(channels, [&](int64_t i, int64_t, auto lanes) RAN_INLINE_LAMBDA {
      const auto constants = op.columns(i, lanes);
      for (int k = 0; k < count.value; ++k) {
        op(at + (r + k) * channels + i, constants, lanes);
      }
    });
  };
  int64_t r = 0;
  for (; r + 2 <= rows; r += 2) {
    together(r, std::integral_constant<int, 2>{});
  }
  if (r < rows) {
    together(r, std::integral_constant<int, 1>{});
  }
}

template <typename Op>
void walk(const FeatureShape& shape, const Op& op) {
  const int64_t inner = shape.channels_last ? shape.c : shape.hw;
  const int64_t outer = shape.channels_last ? shape.hw : shape.c;
  share(shape.n, outer, inner, [&](int64_t sample, int64_t begin, int64_t end) {
    const int64_t at = sample * shape.c * shape.hw;
    if (shape.channels_last) {
      walk_rows(op, at + begin * inner, inner, end - begin);
    } else {
      walk_maps(op, at, inner, begin, end);
    }
  });
}

// ---- two sums over N, H, W of each channel ----------------------------------------------------

// Here op(at, constants, lanes) is what is added up, and op.prefetch(at) asks for what it will read.
template <typename V>
struct Two {
  V first;
  V second;
};

// Elements of a map that are added up before they join the channel's sum in double, and rows: a
// running sum of thousands of float32 loses digits.
constexpr int64_t kMapBlock = 2048;
constexpr int64_t kRowBlock = 256;
// Elements of a channel that one thread adds up, in whole maps if they are smaller.
constexpr int64_t kPart = 8 * kMapBlock;

// A channel's parts. They depend on the shape alone, and so do the sums.
struct Parts {
  explicit Parts(const FeatureShape& shape) {
    if (shape.channels_last) {
      samples = shape.n;
      positions = kRowBlock;
      per_map = (shape.n * shape.hw + kRowBlock - 1) / kRowBlock;
      count = per_map;
      return;
    }
    samples = std::max<int64_t>(1, kPart / shape.hw);
    positions = std::min(kPart, shape.hw);
    per_map = (shape.hw + positions - 1) / positions;
    count = (shape.n + samples - 1) / samples * per_map;
  }

  int64_t samples;    // of a part
  int64_t positions;  // of a part, of each of its samples; rows of all samples in channels_last
  int64_t per_map;
  int64_t count;
};

// (C, HW): positions [from, to) of maps of channels [begin, end), of the samples [first, last). Adds
// to the channels' sums.
template <typename V, typename Op>
RAN_SIMD void sum_maps(
    Op op,
    const FeatureShape& shape,
    int64_t first,
    int64_t last,
    int64_t from,
    int64_t to,
    int64_t begin,
    int64_t end,
    double* sums,
    double* others) {
  for (int64_t sample = first; sample < last; ++sample) {
    for (int64_t c = begin; c < end; ++c) {
      const auto constants = op.channel(c);
      for (int64_t p = from; p < to; p += kMapBlock) {
        const int64_t at = (sample * shape.c + c) * shape.hw + p;
        const int64_t n = std::min(kMapBlock, to - p);
        Two<V> parts[4] = {};
        const auto add = [&](int64_t i, int part, auto lanes) RAN_INLINE_LAMBDA {
          const Two<V> two = op(at + i, constants, lanes);
          parts[part].first += fresh(two.first, V{}, lanes);
          parts[part].second += fresh(two.second, V{}, lanes);
        };
        int64_t i = 0;
        for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
          add(i, 0, Full{});
          add(i + kLanes, 1, Full{});
          add(i + 2 * kLanes, 2, Full{});
          add(i + 3 * kLanes, 3, Full{});
        }
        const auto rest = [&](int64_t j, int64_t, auto lanes)
                              RAN_INLINE_LAMBDA { add(j, 0, lanes); };
        for_vectors(n, rest, i);
        sums[c] += sum_lanes(
            (parts[0].first + parts[1].first) + (parts[2].first + parts[3].first));
        others[c] += sum_lanes(
            (parts[0].second + parts[1].second) + (parts[2].second + parts[3].second));
      }
    }
  }
}

// (HW, C): channels [begin, end) of `rows` rows, of all samples' one after the other. The sums travel
// through the cache, in `scratch`, so several rows are taken at a time.
template <typename V, typename Op, typename A>
RAN_SIMD void sum_rows(
    Op op,
    int64_t channels,
    int64_t row,
    int64_t rows,
    int64_t begin,
    int64_t end,
    A* scratch,
    double* sums,
    double* others) {
  A* second = scratch + padded(end - begin);
  const auto add = [&](int64_t r, auto count) RAN_INLINE_LAMBDA {
    for_vectors(end - begin, [&](int64_t i, int64_t slot, auto lanes) RAN_INLINE_LAMBDA {
      const auto constants = op.columns(begin + i, lanes);
      Two<V> sum{};
      for (int k = 0; k < count.value; ++k) {
        const int64_t at = (row + r + k) * channels + begin + i;
        op.prefetch(at + count.value * channels);
        const Two<V> two = op(at, constants, lanes);
        sum.first += two.first;
        sum.second += two.second;
      }
      store(scratch + slot, r ? load(scratch + slot) + sum.first : sum.first);
      store(second + slot, r ? load(second + slot) + sum.second : sum.second);
    });
  };
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    add(r, std::integral_constant<int, 4>{});
  }
  for (; r < rows; ++r) {
    add(r, std::integral_constant<int, 1>{});
  }
  for_vectors(end - begin, [&](int64_t i, int64_t slot, auto) RAN_INLINE_LAMBDA {
    for (int64_t lane = 0; lane < std::min<int64_t>(kLanes, end - begin); ++lane) {
      sums[begin + i + lane] = scratch[slot + lane];
      others[begin + i + lane] = second[slot + lane];
    }
  });
}

// The sums of each channel: C first ones, then C second ones.
template <typename T, typename Op>
std::vector<double> sum_channels(const FeatureShape& shape, const Op& op) {
  using V = vec_t<T>;
  const int64_t c = shape.c;
  const Parts parts(shape);
  std::vector<double> partial(2 * parts.count * c);
  if (shape.channels_last) {
    const int64_t rows = shape.n * shape.hw;
    const int64_t blocks = (c + kChannelBlock - 1) / kChannelBlock;
    const int64_t elements = std::min(rows, kRowBlock) * std::min(kChannelBlock, c);
    share(parts.count, blocks, elements, [&](int64_t part, int64_t begin, int64_t end) {
      const int64_t row = part * kRowBlock;
      begin *= kChannelBlock;
      end = std::min(end * kChannelBlock, c);
      std::vector<accumulate_t<T>> scratch(2 * padded(end - begin));
      double* sums = partial.data() + 2 * part * c;
      sum_rows<V>(
          op, c, row, std::min(kRowBlock, rows - row), begin, end, scratch.data(), sums, sums + c);
    });
  } else {
    const int64_t elements = std::min(shape.n, parts.samples) * parts.positions;
    share(parts.count, c, elements, [&](int64_t part, int64_t begin, int64_t end) {
      const int64_t first = part / parts.per_map * parts.samples;
      const int64_t from = part % parts.per_map * parts.positions;
      double* sums = partial.data() + 2 * part * c;
      sum_maps<V>(
          op,
          shape,
          first,
          std::min(shape.n, first + parts.samples),
          from,
          std::min(shape.hw, from + parts.positions),
          begin,
          end,
          sums,
          sums + c);
    });
  }
  for (int64_t part = 1; part < parts.count; ++part) {
    for (int64_t i = 0; i < 2 * c; ++i) {
      partial[i] += partial[2 * part * c + i];
    }
  }
  partial.resize(2 * c);
  return partial;
}

}  // namespace ran::cpu
