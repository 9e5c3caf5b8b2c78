// Ranges cut into vectors, and what the kernels that sum over a dimension do with lanes.
#pragma once

#include <algorithm>
#include <limits>

#include "simd.h"

namespace ran::cpu {

RAN_INLINE VecI iota() {
  return VecI{0, 1, 2, 3, 4, 5, 6, 7};
}

// A range's vectors. The last one of a range that is no multiple of kLanes reaches back over
// elements that were seen before; only a range shorter than a vector is loaded partially.
struct Full {};
struct Overlap {
  int32_t seen;  // lanes in front that the vector before has as well
};
struct Short {
  int32_t count;  // lanes there are
};

// Calls body(i, slot, lanes) for the vectors of [0, n), or of [begin, n) where the vectors before
// have been done: the vector's elements start at i. `slot` is a multiple of kLanes of its own for
// arrays that hold a value per vector and lane.
template <typename F>
RAN_INLINE void for_vectors(int64_t n, F&& body, int64_t begin = 0) {
  int64_t i = begin;
  for (; i + kLanes <= n; i += kLanes) {
    body(i, i, Full{});
  }
  if (i == n) {
    return;
  }
  if (n > kLanes) {
    body(n - kLanes, i, Overlap{static_cast<int32_t>(i - (n - kLanes))});
  } else {
    body(int64_t{0}, int64_t{0}, Short{static_cast<int32_t>(n)});
  }
}

// Whether the vector that starts at i has the element `at`. Mostly not, so it is worth a branch.
RAN_INLINE bool has(int64_t i, int64_t at) {
  return static_cast<uint64_t>(at - i) < static_cast<uint64_t>(kLanes);
}

// Set in the lane of the element `at` of the vector that starts at i.
RAN_INLINE VecI lane_of(int64_t i, int64_t at) {
  return iota() == static_cast<int32_t>(at - i);
}

// What arrays indexed by `slot` need for a range of n.
RAN_INLINE int64_t padded(int64_t n) {
  return (n + kLanes - 1) / kLanes * kLanes;
}

template <typename T, typename Lanes>
RAN_INLINE vec_t<T> load(const T* from, Lanes) {
  return load(from);
}
template <typename T>
RAN_INLINE vec_t<T> load(const T* from, Short lanes) {
  return load_partial(from, lanes.count);
}

template <typename T, typename Lanes>
RAN_INLINE void store(T* to, vec_t<T> value, Lanes) {
  store(to, value);
}
template <typename T>
RAN_INLINE void store(T* to, vec_t<T> value, Short lanes) {
  store_partial(to, value, lanes.count);
}

RAN_INLINE VecI load_index(const int32_t* from) {
  VecI value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}
RAN_INLINE void store_index(int32_t* to, VecI value) {
  std::memcpy(to, &value, sizeof(value));
}
template <typename Lanes>
RAN_INLINE VecI load_index(const int32_t* from, Lanes) {
  return load_index(from);
}
RAN_INLINE VecI load_index(const int32_t* from, Short lanes) {
  VecI value{};
  std::memcpy(&value, from, lanes.count * sizeof(int32_t));
  return value;
}
template <typename Lanes>
RAN_INLINE void store_index(int32_t* to, VecI value, Lanes) {
  store_index(to, value);
}
RAN_INLINE void store_index(int32_t* to, VecI value, Short lanes) {
  std::memcpy(to, &value, lanes.count * sizeof(int32_t));
}

// A comparison's result as wide as V's lanes, from one of int32 lanes, and back.
template <typename V>
using mask_t = decltype(V{} == V{});
template <typename V>
RAN_INLINE mask_t<V> mask_for(VecI mask) {
  return __builtin_convertvector(mask, mask_t<V>);
}
template <typename M>
RAN_INLINE VecI narrow_mask(M mask) {
  return __builtin_convertvector(mask, VecI);
}

// `value` with `other` in the lanes that are absent or were seen before.
template <typename V>
RAN_INLINE V fresh(V value, V, Full) {
  return value;
}
template <typename V>
RAN_INLINE V fresh(V value, V other, Overlap lanes) {
  return mask_for<V>(iota() >= lanes.seen) ? value : other;
}
template <typename V>
RAN_INLINE V fresh(V value, V other, Short lanes) {
  return mask_for<V>(iota() < lanes.count) ? value : other;
}

// The greater one. A NaN in `value` is passed over: who calls this finds it in a sum.
template <typename V>
RAN_INLINE V greater(V value, V than) {
  return value > than ? value : than;
}

template <typename V>
constexpr auto kLowest = -std::numeric_limits<std::decay_t<decltype(V{}[0])>>::infinity();
constexpr int32_t kNowhere = std::numeric_limits<int32_t>::max();

// Folds the lanes of v together with `join`, in one fixed order.
template <typename V, typename F>
RAN_INLINE auto fold(V v, F&& join) {
  v = join(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
  v = join(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5));
  v = join(v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6));
  return v[0];
}
template <typename V>
RAN_INLINE auto sum_lanes(V v) {
  return fold(v, [](V a, V b) RAN_INLINE_LAMBDA { return a + b; });
}
template <typename V>
RAN_INLINE auto max_lanes(V v) {
  return fold(v, [](V a, V b) RAN_INLINE_LAMBDA { return a > b ? a : b; });
}
RAN_INLINE int32_t min_lanes(VecI v) {
  return fold(v, [](VecI a, VecI b) RAN_INLINE_LAMBDA { return a < b ? a : b; });
}

template <typename T>
RAN_INLINE accumulate_t<T> scalar(const T* from) {
  return load_partial(from, 1)[0];
}
template <typename T>
RAN_INLINE void store_scalar(T* to, accumulate_t<T> value) {
  store_partial(to, splat<vec_t<T>>(value), 1);
}

// ---- small operands, widened into scratch ---------------------------------------------------

// sigmoid(logits), or 1 without a gate.
template <typename T>
RAN_INLINE void fill_gate(const T* logits, accumulate_t<T>* to, int64_t n) {
  for_vectors(n, [&](int64_t i, int64_t, auto lanes) RAN_INLINE_LAMBDA {
    using V = vec_t<T>;
    const V one = splat<V>(accumulate_t<T>(1));
    store(to + i, logits ? sigmoid(load(logits + i, lanes)) : one, lanes);
  });
}

// from * scale, or 0 where the term is absent.
template <typename T>
RAN_INLINE void fill_scaled(
    const T* from, accumulate_t<T> scale, accumulate_t<T>* to, int64_t n) {
  for_vectors(n, [&](int64_t i, int64_t, auto lanes) RAN_INLINE_LAMBDA {
    store(to + i, from ? load(from + i, lanes) * scale : vec_t<T>{}, lanes);
  });
}

// from, or -1, which no position equals.
RAN_INLINE void fill_index(const int32_t* from, int32_t* to, int64_t n) {
  if (from) {
    std::memcpy(to, from, n * sizeof(int32_t));
  } else {
    std::fill_n(to, n, -1);
  }
}

}  // namespace ran::cpu
