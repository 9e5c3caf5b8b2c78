// The arithmetic of batch normalisation, written once for CUDA's scalars and the CPU's vectors.
#pragma once

#include <cmath>

#include "dtype.h"

namespace ran {

// The greatest number of a dtype's computing type that is 0 once it is rounded to that dtype.
// PyTorch's ReLU keeps its rounded result, and lets through the gradient where that is not <= 0:
// so where the result before it is rounded is not <= this. A NaN lets it through.
template <typename T>
constexpr accumulate_t<T> kVanishes = 0;
template <>
constexpr float kVanishes<Half> = 0x1p-25f;  // half of the least subnormal; the tie goes to 0
template <>
constexpr float kVanishes<BFloat16> = 0x1p-134f;

// 1 / sqrt(variance + eps). eps is added in A, as PyTorch does.
template <typename A>
RAN_HOST_DEVICE A inverse_deviation(A variance, double eps) {
  return A(1) / std::sqrt(variance + static_cast<A>(eps));
}

// What ReLU and rounding are still to come of. All passes that need its sign call this. Of vectors
// compilers make one fma of it, or none, in every pass; of scalars it is one.
template <typename V>
RAN_HOST_DEVICE V normalise(V x, V mean, V scale, V bias) {
  return (x - mean) * scale + bias;
}
RAN_HOST_DEVICE float normalise(float x, float mean, float scale, float bias) {
  return std::fma(x - mean, scale, bias);
}
RAN_HOST_DEVICE double normalise(double x, double mean, double scale, double bias) {
  return std::fma(x - mean, scale, bias);
}

// d loss / d x, with  mean_grad = sum_grad / count  and  slope = invstd sum_grad_xhat / count
template <typename V>
RAN_HOST_DEVICE V normalise_grad(V g, V x, V mean, V scale, V mean_grad, V slope) {
  return (g - (mean_grad + (x - mean) * slope)) * scale;
}

}  // namespace ran
