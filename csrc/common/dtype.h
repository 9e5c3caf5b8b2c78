// The element types every operator accepts, without any torch header, so that CUDA sources can use it too.
#pragma once

#include <cstdint>
#include <stdexcept>

#if defined(__CUDACC__)
#define RAN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define RAN_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace ran {

enum class DType : int { kFloat64, kFloat32, kFloat16, kBFloat16 };

// Storage of the two 16-bit formats. Arithmetic never happens in them: they are widened to float.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type an operator computes in: float64 stays float64, everything else is computed in float32.
template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <typename T>
using accumulate_t = typename Accumulate<T>::type;

template <typename T>
struct Tag {
  using type = T;
};

// Calls f(Tag<T>{}) with the storage type of dtype.
template <typename F>
inline void dispatch(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat64:
      return f(Tag<double>{});
    case DType::kFloat32:
      return f(Tag<float>{});
    case DType::kFloat16:
      return f(Tag<Half>{});
    case DType::kBFloat16:
      return f(Tag<BFloat16>{});
  }
  throw std::invalid_argument("ran: unknown dtype");
}

}  // namespace ran
