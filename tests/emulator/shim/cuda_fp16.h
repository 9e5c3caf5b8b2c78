// CUDA's float16, in plain C++: storage and the two conversions that kernels use.
#pragma once

#include <cstdint>
#include <cstring>

struct __half {
  uint16_t x;
};

inline __half __ushort_as_half(unsigned short bits) {
  return {bits};
}
inline unsigned short __half_as_ushort(__half value) {
  return value.x;
}
inline float __half2float(__half value) {
  const uint32_t sign = (value.x & 0x8000u) << 16;
  const uint32_t exponent = (value.x >> 10) & 31;
  const uint32_t mantissa = value.x & 1023;
  uint32_t bits;
  if (exponent == 31) {
    bits = 0x7f800000u | (mantissa != 0 ? mantissa << 13 | 0x400000u : 0);
  } else if (exponent != 0) {
    bits = (exponent + 112) << 23 | mantissa << 13;
  } else {
    const float subnormal = static_cast<float>(mantissa) * 0x1p-24f;
    std::memcpy(&bits, &subnormal, sizeof bits);
  }
  bits |= sign;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}
// To nearest, ties to even; every NaN becomes the one that the GPU makes.
inline __half __float2half_rn(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return {0x7fff};
  }
  if (magnitude >= 0x477ff000u) {  // 65520 and more
    return {static_cast<uint16_t>(sign | 0x7c00u)};
  }
  uint32_t narrow;
  if (magnitude < 0x38800000u) {  // subnormal: a multiple of 2^-24
    float positive;
    std::memcpy(&positive, &magnitude, sizeof positive);
    const double scaled = static_cast<double>(positive) * 0x1p24;
    narrow = static_cast<uint32_t>(scaled);
    const double rest = scaled - narrow;
    narrow += rest > 0.5 || (rest == 0.5 && (narrow & 1) != 0);
  } else {
    const uint32_t shifted = magnitude - 0x38000000u;
    const uint32_t rest = shifted & 0x1fffu;
    narrow = shifted >> 13;
    narrow += rest > 0x1000u || (rest == 0x1000u && (narrow & 1) != 0);
  }
  return {static_cast<uint16_t>(sign | narrow)};
}
