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
      const Term<A> terms[2] = {{tap.first, tap.first_weight}, {tap.second, tap.second_weight}};
      combine_fixed<2, T, A>(
          from, s.channels, terms, nullptr, to + i * s.channels, s.channels, RowEnd::kExact);
    }
    return;
  }
  if constexpr (std::is_same_v<A, float>) {
    if (!taps.steps.empty()) {
      // A vector may reach past a row shorter than itself: into the next, but not past the last.
      T padded[kLanes] = {};
      if (s.w < kLanes && (row + 1) * s.w + kLanes > s.n * s.channels * s.h * s.w) {
        std::memcpy(padded, from, s.w * sizeof(T));
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
  const int64_t stride = length + kLanes;
  // Source row r is stretched into row r % 2 of this, so the two that a target row reads never meet,
  // and the next target row finds those that it shares.
  std::vector<A> stretched(2 * stride);
  int64_t held[2] = {-1, -1};
  T* out = static_cast<T*>(a.out);
  const int64_t moved = s.n * s.channels * (s.h * s.w + (a.skip ? 2 : 1) * s.height * s.width);
  const bool streamed = length % kLanes == 0 && streams(out, length, moved);
  int64_t y = begin % s.height;
  int64_t source = begin / s.height * s.h;  // the image's first source row
  for (int64_t row = begin; row < end; ++row) {
    const Tap<A>& tap = taps.height[y];
    for (const int64_t r : {source + tap.first, source + tap.second}) {
      if (held[r & 1] != r) {
        stretch(a, taps, r, stretched.data() + (r & 1) * stride);
        held[r & 1] = r;
      }
    }
    const Term<A> terms[2] = {
        {(source + tap.first) & 1, tap.first_weight},
        {(source + tap.second) & 1, tap.second_weight}};
    combine_fixed<2>(
        stretched.data(),
        stride,
        terms,
        a.skip ? static_cast<const T*>(a.skip) + row * length : nullptr,
        out + row * length,
        length,
        (end - row - 1) * length >= kLanes ? RowEnd::kRunsOver : RowEnd::kExact,
        streamed);
    if (++y == s.height) {
      y = 0;
      source += s.h;
    }
  }
  fence();
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

// Along the width: a row of the target's width in the accumulate type -> a row of the result.
template <typename T>
RAN_INLINE void gather(
    const UpsampleShape& s,
    const BackwardTaps<T>& taps,
    const accumulate_t<T>* row,
    accumulate_t<T>* scratch,
    T* to) {
  using A = accumulate_t<T>;
  if (s.channels_last) {
    for (int64_t i = 0; i < s.w; ++i) {
      const int64_t start = taps.width.start[i];
      combine(
          row,
          s.channels,
          &taps.width.terms[start],
          taps.width.start[i + 1] - start,
          scratch,
          to + i * s.channels,
          s.channels,
          RowEnd::kExact);
    }
    return;
  }
  if constexpr (std::is_same_v<A, float>) {
    if (!taps.steps.steps.empty()) {
      return gather_by_shuffles(row, taps.steps, to, s.w);
    }
  }
  gather_by_element(row, taps.width, scratch);
  convert(scratch, to, s.w);
}

// Rows that are summed along the height before they are gathered along the width: a vector loaded
// from the middle of two that were stored just before would wait for both to reach the cache.
constexpr int64_t kBatch = 8;

template <typename T>
RAN_SIMD void backward(
    const UpsampleBackward& a, const BackwardTaps<T>& taps, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const UpsampleShape& s = a.shape;
  const int64_t lane = s.channels_last ? s.channels : 1;
  const int64_t length = s.width * lane;
  const int64_t stride = length + 2 * kLanes;
  const int64_t batch = s.channels_last ? 1 : kBatch;
  const T* grad = static_cast<const T*>(a.grad);
  const T* grad_end = grad + s.n * s.channels * s.height * s.width;
  T* grad_x = static_cast<T*>(a.grad_x);
  std::vector<A> summed(batch * stride);
  std::vector<A> scratch(std::max(s.channels_last ? s.channels : s.w, int64_t{kLanes}));
  for (int64_t first = begin; first < end; first += batch) {
    const int64_t rows = std::min(batch, end - first);
    for (int64_t i = 0; i < rows; ++i) {
      const T* image = grad + (first + i) / s.h * s.height * length;
      const int64_t* start = &taps.height.start[(first + i) % s.h];
      const bool at_end = image + s.height * length + kLanes > grad_end;
      combine(
          image,
          length,
          &taps.height.terms[start[0]],
          start[1] - start[0],
          &summed[i * stride],
          &summed[i * stride],
          length,
          at_end ? RowEnd::kExact : RowEnd::kRunsOver);
    }
    for (int64_t i = 0; i < rows; ++i) {
      gather(s, taps, &summed[i * stride], scratch.data(), grad_x + (first + i) * s.w * lane);
    }
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
