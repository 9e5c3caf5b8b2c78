// Mean and biased variance of each channel, of x or of x + addend.
//
// In one pass, from deviations from a number near the channel's mean: that loses no digits as the
// squares of x itself would. Whether the number was near is seen at the end; if it was not, a
// second pass starts from the mean found.
#include <cmath>

#include "batch_norm_channels.h"
#include "batch_norm_walks.h"

namespace ran::cpu {
namespace {

// Places of a channel, evenly spread, that `near_mean` looks at, and elements at each.
constexpr int64_t kPlaces = 4;
constexpr int64_t kElements = 8;
// The squared deviations from the number, over those from the mean, up to which it is near.
constexpr double kNear = 16;

template <bool kAdd, typename T>
struct Deviations {
  using V = vec_t<T>;

  RAN_INLINE V channel(int64_t c) const {
    return splat<V>(near[c]);
  }
  template <typename Lanes>
  RAN_INLINE V columns(int64_t c, Lanes lanes) const {
    return load(near + c, lanes);
  }
  RAN_INLINE void prefetch(int64_t at) const {
    __builtin_prefetch(x + at);
    if constexpr (kAdd) {
      __builtin_prefetch(addend + at);
    }
  }
  // Before it is rounded.
  template <typename Lanes>
  RAN_INLINE V element(int64_t at, Lanes lanes) const {
    const V v = load(x + at, lanes);
    return kAdd ? v + load(addend + at, lanes) : v;
  }
  // As it is stored, so that the number that the deviations are from is that of the sum, too.
  template <typename Lanes>
  RAN_INLINE V rounded(int64_t at, Lanes lanes) const {
    const V v = element(at, lanes);
    if constexpr (kAdd && sizeof(T) == 2) {
      return widen(narrow(v, T{}), T{});
    } else {
      return v;
    }
  }
  template <typename Lanes>
  RAN_INLINE Two<V> operator()(int64_t at, V from, Lanes lanes) const {
    V v = element(at, lanes);
    if constexpr (kAdd) {
      v = put_rounded(sum + at, v, lanes, streamed);
    }
    const V deviation = v - from;
    return {deviation, deviation * deviation};
  }

  const T* x;
  const T* addend;
  T* sum;
  const accumulate_t<T>* near;
  bool streamed;
};

// The mean of a few elements of each channel, or 0 where that is no number.
template <bool kAdd, typename T>
RAN_SIMD void near_means(
    const Deviations<kAdd, T>& of, const FeatureShape& shape, accumulate_t<T>* near) {
  using A = accumulate_t<T>;
  using V = vec_t<T>;
  const auto settle = [](V mean)
                          RAN_INLINE_LAMBDA { return mean - mean == V{} ? mean : V{}; };
  if (shape.channels_last) {
    const int64_t rows = shape.n * shape.hw;
    const int64_t taken = std::min(kPlaces * kElements, rows);
    for_vectors(shape.c, [&](int64_t i, int64_t, auto lanes) RAN_INLINE_LAMBDA {
      V sum{};
      for (int64_t k = 0; k < taken; ++k) {
        sum += of.rounded(k * rows / taken * shape.c + i, lanes);
      }
      store(near + i, settle(sum / static_cast<A>(taken)), lanes);
    });
    return;
  }
  const int64_t places = std::min(kPlaces, shape.n);
  const Short lanes{static_cast<int32_t>(std::min(kElements, shape.hw))};
  for (int64_t c = 0; c < shape.c; ++c) {
    V sum{};
    for (int64_t k = 0; k < places; ++k) {
      const int64_t map = (k * shape.n / places * shape.c + c) * shape.hw;
      sum += of.rounded(map + (shape.hw - lanes.count) / 2, lanes);
    }
    const A mean = sum_lanes(sum) / static_cast<A>(places * lanes.count);
    near[c] = settle(splat<V>(mean))[0];
  }
}

template <bool kAdd, typename T>
void run(const FeatureShape& shape, const BatchNormStatistics& args) {
  using A = accumulate_t<T>;
  const int64_t c = shape.c;
  const double count = static_cast<double>(shape.n) * static_cast<double>(shape.hw);
  const int64_t inner = shape.channels_last ? c : shape.hw;
  T* sum = static_cast<T*>(args.sum);
  std::vector<A> near(c);
  const Deviations<kAdd, T> first{
      static_cast<const T*>(args.x),
      static_cast<const T*>(args.addend),
      sum,
      near.data(),
      kAdd && streams(sum, inner, 3 * shape.n * c * shape.hw)};
  near_means(first, shape, near.data());
  A* mean = static_cast<A*>(args.mean);
  A* variance = static_cast<A*>(args.variance);
  std::vector<int64_t> far;
  const auto settle = [&](int64_t i, const std::vector<double>& sums) {
    const double offset = sums[i] / count;
    const double squares = sums[c + i] - sums[i] * offset;
    mean[i] = static_cast<A>(near[i] + offset);
    variance[i] = static_cast<A>(std::max(squares, 0.0) / count);
    return sums[c + i] > kNear * squares;
  };
  const std::vector<double> sums = sum_channels<T>(shape, first);
  for (int64_t i = 0; i < c; ++i) {
    if (settle(i, sums)) {
      far.push_back(i);
    }
  }
  if (far.empty()) {
    return;
  }
  for (const int64_t i : far) {
    near[i] = mean[i];
  }
  const T* result = kAdd ? sum : static_cast<const T*>(args.x);
  const Deviations<false, T> second{result, nullptr, nullptr, near.data(), false};
  const std::vector<double> again = sum_channels<T>(shape, second);
  for (const int64_t i : far) {
    settle(i, again);
  }
}

}  // namespace

void batch_norm_statistics(
    DType dtype, const FeatureShape& shape, const BatchNormStatistics& args) {
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    args.addend ? run<true, T>(shape, args) : run<false, T>(shape, args);
  });
}

}  // namespace ran::cpu
