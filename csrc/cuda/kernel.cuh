// What the CUDA kernels share: element conversions, 16-byte accesses, flat launches. No torch header.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../common/dtype.h"

namespace ran::cuda {

// ---- element conversions ----------------------------------------------------------------------

__device__ __forceinline__ float widen(float x) {
  return x;
}
__device__ __forceinline__ double widen(double x) {
  return x;
}
__device__ __forceinline__ int widen(int x) {
  return x;
}
__device__ __forceinline__ float widen(Half x) {
  return __half2float(__ushort_as_half(x.bits));
}
__device__ __forceinline__ float widen(BFloat16 x) {
  return __bfloat162float(__ushort_as_bfloat16(x.bits));
}

template <typename T>
__device__ __forceinline__ T narrow(accumulate_t<T> x) {
  return x;
}
template <>
__device__ __forceinline__ Half narrow<Half>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}
template <>
__device__ __forceinline__ BFloat16 narrow<BFloat16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}

// 1 / (1 + exp(-x)). exp overflows to infinity for very negative x and the quotient is then 0. The
// divisor is at least 1, so the fast division, two instructions without a branch, does as well.
__device__ __forceinline__ float sigmoid(float x) {
  return __fdividef(1.f, 1.f + __expf(-x));
}
__device__ __forceinline__ double sigmoid(double x) {
  return 1.0 / (1.0 + exp(-x));
}

// ---- 16-byte accesses -------------------------------------------------------------------------

// N elements that move together. N = 16 / sizeof(T) makes one 128-bit access.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T item[N];
};

template <typename T>
constexpr int kPack = 16 / sizeof(T);

// N neighbours, widened, in accesses of 16 bytes or of all N where those are fewer. `from` is
// aligned to the access.
template <int N, typename T, typename A>
__device__ __forceinline__ void load(const T* __restrict__ from, A (&to)[N]) {
  constexpr int M = N < kPack<T> ? N : kPack<T>;
#pragma unroll
  for (int first = 0; first < N; first += M) {
    const auto pack = *reinterpret_cast<const Pack<T, M>*>(from + first);
#pragma unroll
    for (int i = 0; i < M; ++i) {
      to[first + i] = widen(pack.item[i]);
    }
  }
}

// One access for a whole pack. The compiler takes packs that are built inside loops apart and would
// store their elements one by one, whatever their type; assembly leaves it no choice.
template <typename T, int N>
__device__ __forceinline__ void store(T* to, const Pack<T, N>& pack) {
  if constexpr (sizeof(pack) == 16) {
    unsigned word[4];
    memcpy(word, &pack, sizeof(word));
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(__cvta_generic_to_global(to)),
                   "r"(word[0]),
                   "r"(word[1]),
                   "r"(word[2]),
                   "r"(word[3])
                 : "memory");
  } else if constexpr (sizeof(pack) == 8) {
    uint64_t word;
    memcpy(&word, &pack, sizeof(word));
    *reinterpret_cast<uint64_t*>(to) = word;
  } else if constexpr (sizeof(pack) == 4) {
    uint32_t word;
    memcpy(&word, &pack, sizeof(word));
    *reinterpret_cast<uint32_t*>(to) = word;
  } else {
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
  }
}

// A null pointer is aligned: nothing is read through it.
inline bool aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}
template <typename... Pointers>
bool aligned(const void* pointer, Pointers... others) {
  return aligned(pointer) && aligned(others...);
}

// ---- launches ---------------------------------------------------------------------------------

constexpr int kThreads = 256;
constexpr int64_t kMaxGridX = INT32_MAX;
constexpr int64_t kMaxGridY = 65535;

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// The grid of every launch. A count that the hardware does not take is not cut to one it does: the
// grid is empty then, and its launch fails with cudaErrorInvalidConfiguration.
inline dim3 grid_of(int64_t x, int64_t y = 1, int64_t z = 1) {
  if (x > kMaxGridX || y > kMaxGridY || z > kMaxGridY) {
    return dim3(0, 0, 0);
  }
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
}

// Lets blocks of a kernel have more dynamic shared memory than the 48 KB that need no leave. False
// where the current GPU has not as much.
template <typename Kernel>
bool allow_shared(Kernel kernel, int64_t bytes) {
  const auto error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error != cudaSuccess) {
    cudaGetLastError();  // it is no fault, and no launch's
  }
  return error == cudaSuccess;
}

// The launches do not ask the device how large it is: results depend on the shape alone. These
// numbers suit chips of 100 to 150 multiprocessors.
constexpr int64_t kBusyBlocks = 528;
constexpr int64_t kBusyThreads = 65536;

// Blocks that are resident at once where a multiprocessor holds two, and blocks that are at least
// four waves where it holds five: between them, most multiprocessors would idle through a last wave
// that is long beside the others.
constexpr int64_t kOneWave = kBusyBlocks / 2;
constexpr int64_t kManyWaves = 10 * kOneWave;

// Into how many pieces to cut each of `blocks` equal works.
inline int64_t pieces_for(int64_t blocks) {
  return blocks <= kOneWave ? kOneWave / std::max<int64_t>(1, blocks) : ceil_div(kManyWaves, blocks);
}

// The largest power of two that is at most x and at most a warp, as its logarithm.
inline int log_lanes_for(int64_t x) {
  int log = 0;
  while (log < 5 && (int64_t{2} << log) <= x) {
    ++log;
  }
  return log;
}

// Blocks so that every thread handles one pack: memory-bound kernels gain nothing from fewer.
inline dim3 blocks_for(int64_t packs) {
  return grid_of(ceil_div(packs, kThreads));
}

}  // namespace ran::cuda
