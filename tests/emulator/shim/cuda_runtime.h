// Stands for CUDA's header where kernels are compiled as plain C++: each name calls the emulator.
// sources.py turns what is no C++ (launches, __shared__, assembly) into calls of the same kind.
#pragma once

#include <math.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#ifndef __CUDACC__
#define __CUDACC__ 1
#endif
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(n) __attribute__((aligned(n)))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

using cudaStream_t = void*;
enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};
extern "C" cudaError_t cudaGetLastError();
extern "C" const char* cudaGetErrorString(cudaError_t error);
extern "C" cudaError_t cudaMemsetAsync(
    void* at, int value, size_t bytes, cudaStream_t stream = nullptr);

namespace emulator {

// ---- launches ---------------------------------------------------------------------------------

// A kernel with its arguments, for every thread to call.
struct Work {
  void (*call)(const void* arguments);
  const void* arguments;
};
void launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, const Work& work);
void limit_dynamic_shared(const void* kernel, int bytes);

// kernel<<<grid, block, bytes>>>(...) is written Launch(grid, block, bytes).run(kernel, ...).
struct Launch {
  dim3 grid;
  dim3 block;
  size_t shared_bytes;

  Launch(dim3 grid, dim3 block, size_t shared_bytes = 0, cudaStream_t = nullptr)
      : grid(grid), block(block), shared_bytes(shared_bytes) {}

  template <typename... Parameters, typename... Arguments>
  void run(void (*kernel)(Parameters...), Arguments&&... arguments) const {
    using Call = std::tuple<void (*)(Parameters...), std::decay_t<Parameters>...>;
    const Call call(kernel, std::forward<Arguments>(arguments)...);
    const Work work{
        [](const void* p) {
          std::apply(
              [](auto k, const auto&... values) { k(values...); }, *static_cast<const Call*>(p));
        },
        &call};
    launch(reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, work);
  }
};

// ---- shared memory ----------------------------------------------------------------------------

unsigned char* dynamic_shared();
// A __shared__ variable is a static one, announced by every thread that passes its declaration.
void static_shared(void* at, size_t bytes);

// ---- threads that wait for each other ---------------------------------------------------------

void barrier(int line);

enum class Exchange { kXor, kDown, kUp, kIndex, kSync, kBallot };
void exchange_in_warp(
    Exchange kind,
    int line,
    unsigned mask,
    const void* in,
    void* out,
    size_t size,
    int argument,
    int width);

template <typename T>
T shuffle(Exchange kind, int line, unsigned mask, T value, int argument, int width = warpSize) {
  T out;
  exchange_in_warp(kind, line, mask, &value, &out, sizeof(T), argument, width);
  return out;
}
inline unsigned ballot(int line, unsigned mask, int predicate) {
  unsigned votes;
  const int vote = predicate != 0;
  exchange_in_warp(Exchange::kBallot, line, mask, &vote, &votes, sizeof(int), 0, warpSize);
  return votes;
}

// ---- memory -----------------------------------------------------------------------------------

// The 16-byte store that kernels write in assembly.
void store16(void* to, const void* words);

enum class Atomic { kAdd, kMin, kMax, kExchange, kCompareAndSwap, kIncrement, kAnd, kOr };
// Returns what was there. An atomic operation does not race with another one.
uint64_t atomic(
    Atomic kind, void* at, size_t size, bool is_signed, uint64_t operand, uint64_t compare);
// __threadfence: an atomic operation of this thread then publishes what its block wrote before.
void fence();

template <typename T>
T atomic(Atomic kind, T* at, T operand, T compare = 0) {
  static_assert(std::is_integral_v<T>, "atomics on floats make results differ from run to run");
  return static_cast<T>(atomic(
      kind,
      at,
      sizeof(T),
      std::is_signed_v<T>,
      static_cast<uint64_t>(operand),
      static_cast<uint64_t>(compare)));
}

}  // namespace emulator

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    emulator::limit_dynamic_shared(reinterpret_cast<const void*>(kernel), value);
  }
  return cudaSuccess;
}

#define __syncthreads() ::emulator::barrier(__LINE__)
#define __syncwarp(...) \
  (static_cast<void>(::emulator::shuffle(::emulator::Exchange::kSync, __LINE__, ~0u, 0, 0)))
#define __shfl_xor_sync(mask, ...) \
  ::emulator::shuffle(::emulator::Exchange::kXor, __LINE__, mask, __VA_ARGS__)
#define __shfl_down_sync(mask, ...) \
  ::emulator::shuffle(::emulator::Exchange::kDown, __LINE__, mask, __VA_ARGS__)
#define __shfl_up_sync(mask, ...) \
  ::emulator::shuffle(::emulator::Exchange::kUp, __LINE__, mask, __VA_ARGS__)
#define __shfl_sync(mask, ...) \
  ::emulator::shuffle(::emulator::Exchange::kIndex, __LINE__, mask, __VA_ARGS__)
#define __ballot_sync(mask, predicate) ::emulator::ballot(__LINE__, mask, predicate)
#define __any_sync(mask, predicate) (::emulator::ballot(__LINE__, mask, predicate) != 0)
#define __all_sync(mask, predicate) (::emulator::ballot(__LINE__, mask, predicate) == (mask))

#include "device_functions.h"
