// Fixed-width vectors for the CPU kernels, in the compilers' vector extension.
//
// A kernel marked RAN_SIMD is compiled once per instruction set, and the loader picks the widest
// that the processor has when the library is first used. x86-64-v3 is AVX2 and FMA; with eight lanes
// a vector, AVX-512 would bring a third copy of every kernel, and wider registers to float64 alone.
// Everything a kernel calls must be inlined into it (RAN_INLINE), or it keeps the baseline instructions.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../common/dtype.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define RAN_SIMD __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define RAN_SIMD
#endif
#define RAN_INLINE inline __attribute__((always_inline))
// Behind a lambda's parameters: its body is a function too, and must not stay at the baseline.
#define RAN_INLINE_LAMBDA __attribute__((always_inline))

namespace ran::cpu {

// Lanes of every vector, whatever the element: float is one register of AVX2 and two of SSE or NEON,
// double twice as many.
constexpr int kLanes = 8;

using VecF = float __attribute__((vector_size(kLanes * 4)));
using VecD = double __attribute__((vector_size(kLanes * 8)));
using VecI = int32_t __attribute__((vector_size(kLanes * 4)));
using VecU = uint32_t __attribute__((vector_size(kLanes * 4)));
using VecU16 = uint16_t __attribute__((vector_size(kLanes * 2)));
using VecU16x2 = uint16_t __attribute__((vector_size(kLanes * 4)));

template <typename A>
struct VecOf;
template <>
struct VecOf<float> {
  using type = VecF;
};
template <>
struct VecOf<double> {
  using type = VecD;
};
// The vector that elements of storage type T are computed in.
template <typename T>
using vec_t = typename VecOf<accumulate_t<T>>::type;

template <typename To, typename From>
RAN_INLINE To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// As a shuffle: compilers put the lanes of `value - V{}` together one by one.
template <typename V, typename A>
RAN_INLINE V splat(A value) {
  using Element = std::decay_t<decltype(V{}[0])>;
  const V first{static_cast<Element>(value)};
  return __builtin_shufflevector(first, first, 0, 0, 0, 0, 0, 0, 0, 0);
}

// ---- 16-bit formats -------------------------------------------------------------------------

// As shuffles that are single instructions of AVX2: compilers make twice as many of the conversions
// between 16 and 32 bits.
RAN_INLINE VecF widen(VecU16 raw, BFloat16) {
  const VecU16x2 spread =
      __builtin_shufflevector(raw, raw, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7);
  return bits<VecF>(__builtin_shufflevector(
      VecU16x2{}, spread, 0, 16, 1, 17, 2, 18, 3, 19, 8, 24, 9, 25, 10, 26, 11, 27));
}

// The upper 16 bits of every lane.
RAN_INLINE VecU16 upper_halves(VecU value) {
  using Quads = uint64_t __attribute__((vector_size(kLanes * 4)));
  const VecU16x2 pairs = bits<VecU16x2>(value);
  const Quads quads = bits<Quads>(__builtin_shufflevector(
      pairs, pairs, 1, 3, 5, 7, 1, 3, 5, 7, 9, 11, 13, 15, 9, 11, 13, 15));
  return bits<VecU16>(__builtin_shufflevector(quads, quads, 0, 2));
}

RAN_INLINE VecU16 narrow(VecF value, BFloat16) {
  const VecU u = bits<VecU>(value);
  const VecU rounded = u + 0x7fffu + ((u >> 16) & 1u);  // to nearest, ties to even
  // A NaN's payload may round to infinity, so it is replaced by the quiet NaN of its sign.
  const VecU quiet = (u & 0x80000000u) | 0x7fc00000u;
  return upper_halves(value == value ? rounded : quiet);
}

RAN_INLINE VecF widen(VecU16 raw, Half) {
  const VecU u = __builtin_convertvector(raw, VecU);
  const VecU magnitude = (u & 0x7fffu) << 13;
  // 2^112 moves the exponent from half's bias (15) to float's (127), subnormals included.
  const VecU finite = bits<VecU>(bits<VecF>(magnitude) * 0x1p112f);
  const VecU value = magnitude >= (0x7c00u << 13) ? (magnitude | 0x7f800000u) : finite;
  return bits<VecF>(value | ((u & 0x8000u) << 16));
}

RAN_INLINE VecU16 narrow(VecF value, Half) {
  const VecU u = bits<VecU>(value);
  const VecU sign = (u >> 16) & 0x8000u;
  const VecU magnitude = u & 0x7fffffffu;
  // Normal range: rebias the exponent and round the 13 dropped bits to nearest, ties to even.
  const VecU normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14 the addition of 0.5 lines the bits up with half's subnormals and rounds them.
  const VecU subnormal = bits<VecU>(bits<VecF>(magnitude) + 0.5f) - 0x3f000000u;
  VecU half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? (VecU{} + 0x7c00u) : half;  // 65520 and above round to infinity
  half = magnitude > 0x7f800000u ? (VecU{} + 0x7e00u) : half;   // NaN
  return upper_halves((half | sign) << 16);
}

// ---- load and store -------------------------------------------------------------------------

template <typename T>
RAN_INLINE vec_t<T> load(const T* from) {
  if constexpr (sizeof(T) == 2) {
    VecU16 raw;
    std::memcpy(&raw, from, sizeof(raw));
    return widen(raw, T{});
  } else {
    vec_t<T> value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
}

template <typename T>
RAN_INLINE void store(T* to, vec_t<T> value) {
  if constexpr (sizeof(T) == 2) {
    const VecU16 raw = narrow(value, T{});
    std::memcpy(to, &raw, sizeof(raw));
  } else {
    std::memcpy(to, &value, sizeof(value));
  }
}

// The last, short vector of a range: lanes past `count` are zero and are not stored.
template <typename T>
RAN_INLINE vec_t<T> load_partial(const T* from, int64_t count) {
  T buffer[kLanes] = {};
  std::memcpy(buffer, from, count * sizeof(T));
  return load(buffer);
}

template <typename T>
RAN_INLINE void store_partial(T* to, vec_t<T> value, int64_t count) {
  T buffer[kLanes];
  store(buffer, value);
  std::memcpy(to, buffer, count * sizeof(T));
}

// load and store of min(count, kLanes) lanes.
template <typename T>
RAN_INLINE vec_t<T> load_some(const T* from, int64_t count) {
  return count >= kLanes ? load(from) : load_partial(from, count);
}

template <typename T>
RAN_INLINE void store_some(T* to, vec_t<T> value, int64_t count) {
  if (count >= kLanes) {
    store(to, value);
  } else {
    store_partial(to, value, count);
  }
}

// ---- arithmetic -----------------------------------------------------------------------------

// exp(x) = 2^n p, n = round(x / ln 2). `biased` holds n in its low bits, below those of 1.5 * 2^23.
struct Exponential {
  VecF p;
  VecI biased;
};

RAN_INLINE Exponential exponential(VecF x) {
  // p = exp(r), |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the
  // low bits; ln 2 is subtracted in two parts (Cody, Waite).
  const VecF shifted = x * 0x1.715476p0f + 0x1.8p23f;
  const VecF n = shifted - 0x1.8p23f;
  const VecF r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
  // Minimax polynomial of exp on that interval (Cephes), within 1 ulp.
  VecF p = splat<VecF>(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return {p * (r * r) + r + 1.f, bits<VecI>(shifted)};
}

// value in the lanes below count, 0 in the others.
template <typename V>
RAN_INLINE V first_lanes(V value, int64_t count) {
  V lane;
  for (int i = 0; i < kLanes; ++i) {
    lane[i] = i;
  }
  return lane < splat<V>(count) ? value : V{};
}

// Sum over the lanes, in a fixed order.
template <typename V>
RAN_INLINE auto horizontal_sum(V v) {
  static_assert(kLanes == 8);
  return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
}

// 1 / (1 + exp(-x)), 0 below -88.4 where that is less than 5e-39.
RAN_INLINE VecF sigmoid(VecF x) {
  VecF y = -x;
  // Up to here 2^n is a float, infinity at the upper end. A NaN fails both comparisons and stays.
  y = y > 88.7f ? splat<VecF>(88.7f) : y;
  y = y < -87.f ? splat<VecF>(-87.f) : y;
  const Exponential e = exponential(y);
  return 1 / (1 + e.p * bits<VecF>((e.biased << 23) + (127 << 23)));
}

RAN_INLINE VecD sigmoid(VecD x) {
  VecD result;
  for (int i = 0; i < kLanes; ++i) {
    result[i] = 1 / (1 + std::exp(-x[i]));
  }
  return result;
}

}  // namespace ran::cpu
