// Reductions over the rows or the columns of each sample's matrix: what the kernels in
// reduce_rows.cuh and reduce_columns.cuh share.
//
// An operator says what is reduced and how. Of the two indices of an element, the channel and the
// position, one is reduced and the other kept:
//
//   T, A, Acc                  element, arithmetic and accumulator types
//   kInputs, kWrites           how many tensors are read, and whether one is written
//   in[kInputs], written       those tensors; a null input reads as 0
//   Factor                     what an element needs to know of its reduced index
//   factors(n, reduced, f[V])  loads it for V neighbours
//   kOverChannels              whether channels are reduced, or positions
//   take(acc, v, f, kept, reduced)  adds one element; returns what is written for it
//   finish(acc, n, kept)       stores a result
#pragma once

#include <climits>
#include <type_traits>

#include "matrix.cuh"

namespace ran::cuda {

// The index where there is no element.
constexpr int kNone = INT_MAX;

// A NaN is greater than any number and not greater than another NaN.
template <typename A>
__device__ __forceinline__ bool greater(A a, A b) {
  return !(a <= b) && b == b;
}

template <typename A>
struct Sum {
  A sum;

  static __device__ __forceinline__ Sum start(int) {
    return {A(0)};
  }
  __device__ __forceinline__ void merge(const Sum& other) {
    sum += other.sum;
  }
  __device__ __forceinline__ Sum of_lane_xor(int mask) const {
    return {__shfl_xor_sync(~0u, sum, mask)};
  }
};

// The sum, the maximum and the first index of the maximum. Elements come with rising indices,
// merged parts in any order.
template <typename A>
struct SumMax {
  A sum;
  A max;
  int index;

  // `first` is the index of the first element to come: the maximum's if all are -infinity.
  static __device__ __forceinline__ SumMax start(int first) {
    return {A(0), -static_cast<A>(INFINITY), first};
  }
  __device__ __forceinline__ void take(A value, int at) {
    sum += value;
    if (greater(value, max)) {
      max = value;
      index = at;
    }
  }
  __device__ __forceinline__ void merge(const SumMax& other) {
    sum += other.sum;
    const bool tie = !greater(max, other.max);
    if (greater(other.max, max) || (tie && other.index < index)) {
      max = other.max;
      index = other.index;
    }
  }
  __device__ __forceinline__ SumMax of_lane_xor(int mask) const {
    return {
        __shfl_xor_sync(~0u, sum, mask),
        __shfl_xor_sync(~0u, max, mask),
        __shfl_xor_sync(~0u, index, mask)};
  }
};

// Merges the parts of 2^log_lanes neighbouring lanes; all of them get the result. Every lane of the
// warp takes part.
template <typename Acc>
__device__ __forceinline__ void merge_lanes(Acc& acc, int log_lanes) {
  for (int mask = (1 << log_lanes) >> 1; mask > 0; mask >>= 1) {
    acc.merge(acc.of_lane_xor(mask));
  }
}

// Whether elements need anything of their reduced index: blocks hold it in shared memory.
template <typename Op>
constexpr bool kStaged = !std::is_empty_v<typename Op::Factor>;

// V elements of every input at `offset`.
template <typename Op, int V>
struct Elements {
  Pack<typename Op::T, V> pack[Op::kInputs];

  __device__ __forceinline__ void load(const Op& op, int64_t offset) {
#pragma unroll
    for (int k = 0; k < Op::kInputs; ++k) {
      if (op.in[k] != nullptr) {
        pack[k] = *reinterpret_cast<const Pack<typename Op::T, V>*>(op.in[k] + offset);
      } else {
        pack[k] = {};
      }
    }
  }
  __device__ __forceinline__ void widened(int i, typename Op::A (&v)[Op::kInputs]) const {
#pragma unroll
    for (int k = 0; k < Op::kInputs; ++k) {
      v[k] = widen(pack[k].item[i]);
    }
  }
};

// ---- second stage -----------------------------------------------------------------------------

// How the parts of one result lie in the workspace: `chunks` blocks of (n, fold, kept).
struct Parts {
  int chunks;
  int fold;
  int kept;
  int64_t n;

  bool needed() const {
    return chunks * int64_t{fold} > 1;
  }
  int64_t count() const {
    return chunks * n * fold * kept;
  }
  __device__ __forceinline__ int64_t at(int chunk, int64_t sample, int64_t slot) const {
    return (chunk * n + sample) * fold * kept + slot;
  }
};

template <typename Op>
__global__ void __launch_bounds__(kThreads) finish_kernel(
    Op op, Parts parts, const typename Op::Acc* __restrict__ partials, int log_lanes) {
  using Acc = typename Op::Acc;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int lane = threadIdx.x & ((1 << log_lanes) - 1);
  const int64_t result = thread >> log_lanes;
  const int64_t sample = result / parts.kept;
  const int kept = static_cast<int>(result - sample * parts.kept);
  Acc acc = Acc::start(kNone);
  if (sample < parts.n) {
    for (int i = lane; i < parts.chunks * parts.fold; i += 1 << log_lanes) {
      const int64_t slot = static_cast<int64_t>(i % parts.fold) * parts.kept + kept;
      acc.merge(partials[parts.at(i / parts.fold, sample, slot)]);
    }
  }
  merge_lanes(acc, log_lanes);
  if (sample < parts.n && lane == 0) {
    op.finish(acc, sample, kept);
  }
}

template <typename Op>
int finish(const Op& op, const Parts& parts, const void* workspace, cudaStream_t stream) {
  const int log_lanes = log_lanes_for(ceil_div(int64_t{parts.chunks} * parts.fold, 4));
  const int64_t threads = parts.n * parts.kept << log_lanes;
  finish_kernel<Op><<<blocks_for(threads), kThreads, 0, stream>>>(
      op, parts, static_cast<const typename Op::Acc*>(workspace), log_lanes);
  return cudaGetLastError();
}

}  // namespace ran::cuda
