// Bilinear interpolation is an interpolation along the width after one along the height, in either
// order. Along the height whole rows are combined, which is one vector loop for both layouts; along
// the width each layout has a loop of its own. Between the two, rows stay in the cache and in the
// type that is accumulated in.
#include "../upsample.h"

#include <memory>
#include <type_traits>

#include "upsample_rows.h"

namespace ran::cpu {
namespace {

template <typename T>
struct ForwardTaps {
  using A = accumulate_t<T>;
  std::vector<Tap<A>> height;
  std::vector<Tap<A>> width;
  std::vector<StretchStep> steps;

  explicit ForwardTaps(const UpsampleShape& s)
      : height(taps_by_target(Axis<A>(s.h, s.height, s.align_corners))),
        width(taps_by_target(Axis<A>(s.w, s.width, s.align_corners))) {
    if constexpr (std::is_same_v<A, float>) {
      steps = stretch_steps(width, static_cast<int>(s.w));
    }
  }
};

// Source row -> `to`, a row of the target's width in the accumulate type.
template <typename T>
RAN_INLINE void stretch(
    const UpsampleForward& a, const ForwardTaps<T>& taps, int64_t row, accumulate_t<T>* to) {
  using A = accumulate_t<T>;
  const UpsampleShape& s = a.shape;
  const int64_t row_length = s.w * (s.channels_last ? s.channels : 1);
  const T* from = static_cast<const T*>(a.x) + row * row_length;
  if (s.channels_last) {
    for (int64_t i = 0; i < s.width; ++i) {
      const Tap<A>& tap = taps.width[i];
      const T* pixels[2] = {from + tap.first * s.channels, from + tap.second * s.channels};
      const A weights[2] = {tap.first_weight, tap.second_weight};
      combine_fixed<2, T, A>(pixels, weights, nullptr, to + i * s.channels, s.channels);
    }
    return;
  }
  if constexpr (std::is_same_v<A, float>) {
    if (!taps.steps.empty()) {
      // A vector may reach past a row shorter than itself: into the next, but not past the last.
      T padded[kLanes] = {};
      if (s.w < kLanes && (row + 1) * s.w + kLanes > s.n * s.channels * s.h * s.w) {
        std::copy_n(from, s.w, padded);
        from = padded;
      }
      return stretch_by_shuffles(from, taps.steps, to);
    }
  }
  if constexpr (std::is_same_v<T, A>) {
    stretch_by_element(from, taps.width, to);
  } else {
    std::vector<A> widened(row_length);
    convert(from, widened.data(), row_length);
    stretch_by_element(widened.data(), taps.width, to);
  }
}

template <typename T>
RAN_SIMD void forward(
    const UpsampleForward& a, const ForwardTaps<T>& taps, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const UpsampleShape& s = a.shape;
  const int64_t length = s.width * (s.channels_last ? s.channels : 1);
  // Source row r is stretched into buffer r % 2, so the two that a target row reads never meet, and
  // the next target row finds those that it shares.
  std::vector<A> buffer(2 * (length + kLanes));
  A* const rows[2] = {buffer.data(), buffer.data() + length + kLanes};
  int64_t held[2] = {-1, -1};
  for (int64_t row = begin; row < end; ++row) {
    const int64_t source = row / s.height * s.h;
    const Tap<A>& tap = taps.height[row % s.height];
    for (const int64_t r : {source + tap.first, source + tap.second}) {
      if (held[r % 2] != r) {
        stretch(a, taps, r, rows[r % 2]);
        held[r % 2] = r;
      }
    }
    const A* const pair[2] = {rows[(source + tap.first) % 2], rows[(source + tap.second) % 2]};
    const A weights[2] = {tap.first_weight, tap.second_weight};
    const T* skip = a.skip ? static_cast<const T*>(a.skip) + row * length : nullptr;
    combine_fixed<2>(pair, weights, skip, static_cast<T*>(a.out) + row * length, length);
  }
}

template <typename T>
struct BackwardTaps {
  using A = accumulate_t<T>;
  TapsBySource<A> height;
  TapsBySource<A> width;
  GatherSteps steps;

  explicit BackwardTaps(const UpsampleShape& s)
      : height(Axis<A>(s.h, s.height, s.align_corners)),
        width(Axis<A>(s.w, s.width, s.align_corners)) {
    if constexpr (std::is_same_v<A, float>) {
      if (!s.channels_last) {
        steps = GatherSteps(width);
      }
    }
  }
};

// The lists of an axis, resolved to rows in memory for `combine`.
template <typename From>
struct RowList {
  std::vector<const From*> rows;
  std::vector<accumulate_t<From>> weights;

  RAN_INLINE void set(
      const TapsBySource<accumulate_t<From>>& taps, int64_t source, const From* base, int64_t length) {
    rows.clear();
    weights.clear();
    for (int64_t i = taps.start[source]; i < taps.start[source + 1]; ++i) {
      rows.push_back(base + taps.entries[i].target * length);
      weights.push_back(taps.entries[i].weight);
    }
  }
};

template <typename T>
RAN_SIMD void backward(
    const UpsampleBackward& a, const BackwardTaps<T>& taps, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const UpsampleShape& s = a.shape;
  const int64_t lane = s.channels_last ? s.channels : 1;
  const int64_t length = s.width * lane;
  std::vector<A> summed(length + 2 * kLanes);  // the target rows of one source row, added up
  std::vector<A> scratch(std::max(s.channels_last ? s.channels : s.w, int64_t{kLanes}));
  RowList<T> rows;
  RowList<A> pixels;
  for (int64_t row = begin; row < end; ++row) {
    const T* image = static_cast<const T*>(a.grad) + row / s.h * s.height * length;
    T* to = static_cast<T*>(a.grad_x) + row * s.w * lane;
    rows.set(taps.height, row % s.h, image, length);
    combine(
        rows.rows.data(), rows.weights.data(), rows.rows.size(), summed.data(), summed.data(), length);
    if (s.channels_last) {
      for (int64_t i = 0; i < s.w; ++i) {
        pixels.set(taps.width, i, summed.data(), s.channels);
        combine(
            pixels.rows.data(),
            pixels.weights.data(),
            pixels.rows.size(),
            scratch.data(),
            to + i * s.channels,
            s.channels);
      }
      continue;
    }
    if constexpr (std::is_same_v<A, float>) {
      if (!taps.steps.steps.empty()) {
        gather_by_shuffles(summed.data(), taps.steps, to, s.w);
        continue;
      }
    }
    gather_by_element(summed.data(), taps.width, scratch.data());
    convert(scratch.data(), to, s.w);
  }
}

}  // namespace

ComputeRows upsample(DType dtype, const UpsampleForward& args) {
  ComputeRows rows;
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    rows = [args, taps = std::make_shared<ForwardTaps<T>>(args.shape)](
               int64_t begin, int64_t end) { forward<T>(args, *taps, begin, end); };
  });
  return rows;
}

ComputeRows upsample_backward(DType dtype, const UpsampleBackward& args) {
  ComputeRows rows;
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    rows = [args, taps = std::make_shared<BackwardTaps<T>>(args.shape)](
               int64_t begin, int64_t end) { backward<T>(args, *taps, begin, end); };
  });
  return rows;
}

}  // namespace ran::cpu
