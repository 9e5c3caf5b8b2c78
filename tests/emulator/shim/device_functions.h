// CUDA's device functions. What is approximate on a GPU is rounded once here, or off by as many
// units in the last place as emulator_set_approximation says.
#pragma once

namespace emulator {

extern int approximation;  // units in the last place, with the sign of the direction

inline float approximate(float x) {
  if (approximation == 0 || !(std::fabs(x) < INFINITY) || x == 0) {
    return x;
  }
  for (int i = 0; i < std::abs(approximation); ++i) {
    x = std::nextafterf(x, approximation > 0 ? INFINITY : -INFINITY);
  }
  return x;
}

// ex2.approx of a rounded product.
inline float fast_exp(float x) {
  const double exponent = x * 1.44269504088896341f;
  return approximate(static_cast<float>(std::exp2(exponent)));
}
// Where the divisor is above 2^126, the GPU's quotient is 0, or NaN for an infinite dividend.
inline float fast_divide(float x, float y) {
  const float divisor = std::fabs(y);
  if (divisor > 0x1p126f && divisor < INFINITY) {
    return std::isinf(x) ? NAN : x * 0.f;
  }
  return approximate(x / y);
}

}  // namespace emulator

#undef __expf
#define __expf ::emulator::fast_exp
#define __fdividef ::emulator::fast_divide

inline float rsqrtf(float x) {
  return emulator::approximate(static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))));
}
inline float rsqrt(float x) {
  return rsqrtf(x);
}
inline double rsqrt(double x) {
  return 1.0 / std::sqrt(x);
}

#define EMULATOR_MIN_MAX(T)     \
  inline T min(T a, T b) {      \
    return a < b ? a : b;       \
  }                             \
  inline T max(T a, T b) {      \
    return a > b ? a : b;       \
  }
EMULATOR_MIN_MAX(int)
EMULATOR_MIN_MAX(unsigned)
EMULATOR_MIN_MAX(long)
EMULATOR_MIN_MAX(unsigned long)
EMULATOR_MIN_MAX(long long)
EMULATOR_MIN_MAX(unsigned long long)
#undef EMULATOR_MIN_MAX
// Of a NaN and a number, the number.
inline float min(float a, float b) {
  return std::fmin(a, b);
}
inline float max(float a, float b) {
  return std::fmax(a, b);
}
inline double min(double a, double b) {
  return std::fmin(a, b);
}
inline double max(double a, double b) {
  return std::fmax(a, b);
}

// Cache hints change no value.
template <typename T>
inline T __ldg(const T* from) {
  return *from;
}
template <typename T>
inline T __ldcg(const T* from) {
  return *from;
}
template <typename T>
inline T __ldcs(const T* from) {
  return *from;
}
template <typename T>
inline void __stcs(T* to, T value) {
  *to = value;
}
template <typename T>
inline void __stcg(T* to, T value) {
  *to = value;
}

inline void __threadfence() {
  emulator::fence();
}
inline void __threadfence_block() {}

template <typename T>
inline T atomicAdd(T* at, T operand) {
  return emulator::atomic(emulator::Atomic::kAdd, at, operand);
}
template <typename T>
inline T atomicSub(T* at, T operand) {
  return emulator::atomic(emulator::Atomic::kAdd, at, static_cast<T>(-operand));
}
template <typename T>
inline T atomicMin(T* at, T operand) {
  return emulator::atomic(emulator::Atomic::kMin, at, operand);
}
template <typename T>
inline T atomicMax(T* at, T operand) {
  return emulator::atomic(emulator::Atomic::kMax, at, operand);
}
template <typename T>
inline T atomicAnd(T* at, T operand) {
  return emulator::atomic(emulator::Atomic::kAnd, at, operand);
}
template <typename T>
inline T atomicOr(T* at, T operand) {
  return emulator::atomic(emulator::Atomic::kOr, at, operand);
}
template <typename T>
inline T atomicExch(T* at, T operand) {
  return emulator::atomic(emulator::Atomic::kExchange, at, operand);
}
template <typename T>
inline T atomicCAS(T* at, T compare, T operand) {
  return emulator::atomic(emulator::Atomic::kCompareAndSwap, at, operand, compare);
}
inline unsigned atomicInc(unsigned* at, unsigned last) {
  return emulator::atomic(emulator::Atomic::kIncrement, at, last);
}

// CUDA's vectors, aligned as a whole.
struct __align__(8) uint2 {
  unsigned x, y;
};
struct __align__(16) uint4 {
  unsigned x, y, z, w;
};
struct __align__(8) int2 {
  int x, y;
};
struct __align__(16) int4 {
  int x, y, z, w;
};
struct __align__(8) float2 {
  float x, y;
};
struct __align__(16) float4 {
  float x, y, z, w;
};
struct __align__(16) double2 {
  double x, y;
};
