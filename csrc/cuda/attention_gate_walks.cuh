// How the threads of a block walk over the groups of logits that attention_gate standardises, by
// where the members of a group lie:
//
//   WarpRows     beside each other, few: 2^log_lanes lanes of a warp to a group
//   StagedRows   likewise, but rows are no whole packs: the block's rows come to shared memory first
//   BlockRow     beside each other, many: the block to a group
//   Columns      `inner` apart: 2^log_lanes lanes side by side, N groups each, share a strip's columns
//                with the lanes above and below them
//
// Each walks the members in packs of N elements with each(f), f(step, offset of the pack), kDeep steps
// side by side, and adds up what its threads found with total(). Columns has a sum for each of its N
// groups, rows have one.
#pragma once

#include "../attention_gate.h"
#include "kernel.cuh"

namespace ran::cuda {

constexpr int kWarps = kThreads / 32;

// What the launch has decided.
struct GateTiling {
  int log_lanes;
  int steps;       // the most packs of a tensor that a thread walks
  int kept;        // tensors that stay in shared memory once read
  int64_t strips;  // of columns, side by side
  double share;    // of a member in a group's mean
};

template <typename A>
__device__ __forceinline__ A lanes_sum(A value, int from, int to) {
#pragma unroll 5
  for (int step = from; step < to; step *= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, step);
  }
  return value;
}

// Whether the condition holds for any thread of the block.
__device__ __forceinline__ bool any_of_block(bool condition) {
  __shared__ int of_warp[kWarps];
  const int mine = __any_sync(0xffffffffu, condition);
  __syncthreads();  // the last answer has been read
  if (threadIdx.x % 32 == 0) {
    of_warp[threadIdx.x / 32] = mine;
  }
  __syncthreads();
  bool any = false;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) {
    any |= of_warp[warp] != 0;
  }
  return any;
}

template <int N_, bool kStagedRows>
struct RowsOfWarps {
  static constexpr int N = N_;
  static constexpr int kGroups = 1;
  static constexpr bool kStaged = kStagedRows;
  int lanes;
  int lane;
  int64_t begin;
  int64_t members;

  __device__ RowsOfWarps(const GateShape& s, const GateTiling& t) : lanes(1 << t.log_lanes) {
    lane = threadIdx.x & (lanes - 1);
    const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads >> t.log_lanes);
    const int mine = threadIdx.x >> t.log_lanes;
    begin = (kStaged ? mine : first + mine) * s.members;
    members = first + mine < s.outer ? s.members : 0;
  }
  template <int kDeep = 1, typename F>
  __device__ __forceinline__ void each(F&& f) const {
    int step = 0;
#pragma unroll(kDeep)
    for (int64_t i = lane * N; i < members; i += lanes * N) {
      f(step++, begin + i);
    }
  }
  // What f(step, offset, values of the first member's groups) finds where the first member is.
  template <typename A, typename F>
  __device__ __forceinline__ void first(A (&value)[1], F&& f) const {
    if (lane == 0 && members > 0) {
      f(0, begin, value);
    }
    value[0] = __shfl_sync(0xffffffffu, value[0], threadIdx.x & 31 & ~(lanes - 1));
  }
  template <typename A>
  __device__ __forceinline__ void total(A (&sum)[1]) const {
    sum[0] = lanes_sum(sum[0], 1, lanes);
  }
  // Whether the condition holds anywhere among threads that walk together.
  static __device__ __forceinline__ bool any(bool condition) {
    return __any_sync(0xffffffffu, condition);
  }
};
template <int N>
using WarpRows = RowsOfWarps<N, false>;
using StagedRows = RowsOfWarps<1, true>;

template <int N_>
struct BlockRow {
  static constexpr int N = N_;
  static constexpr int kGroups = 1;
  static constexpr bool kStaged = false;
  int64_t begin;
  int64_t members;

  __device__ BlockRow(const GateShape& s, const GateTiling&)
      : begin(static_cast<int64_t>(blockIdx.x) * s.members), members(s.members) {}
  template <int kDeep = 1, typename F>
  __device__ __forceinline__ void each(F&& f) const {
    int step = 0;
#pragma unroll(kDeep)
    for (int64_t i = static_cast<int64_t>(threadIdx.x) * N; i < members; i += kThreads * N) {
      f(step++, begin + i);
    }
  }
  template <typename A, typename F>
  __device__ __forceinline__ void first(A (&value)[1], F&& f) const {
    __shared__ A of_first;
    __syncthreads();  // the last one has been read
    if (threadIdx.x == 0) {
      f(0, begin, value);
      of_first = value[0];
    }
    __syncthreads();
    value[0] = of_first;
  }
  template <typename A>
  __device__ __forceinline__ void total(A (&sum)[1]) const {
    __shared__ A of_warp[kWarps];
    const A mine = lanes_sum(sum[0], 1, 32);
    __syncthreads();  // the last total has been read
    if (threadIdx.x % 32 == 0) {
      of_warp[threadIdx.x / 32] = mine;
    }
    __syncthreads();
    sum[0] = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      sum[0] += of_warp[warp];
    }
  }
  static __device__ __forceinline__ bool any(bool condition) {
    return any_of_block(condition);
  }
};

template <int N_>
struct Columns {
  static constexpr int N = N_;
  static constexpr int kGroups = N;
  static constexpr bool kStaged = false;
  int lanes;
  int x;
  int y;
  int64_t begin;
  int64_t members;
  int64_t inner;

  __device__ Columns(const GateShape& s, const GateTiling& t)
      : lanes(1 << t.log_lanes), inner(s.inner) {
    x = threadIdx.x & (lanes - 1);
    y = threadIdx.x >> t.log_lanes;
    const int64_t outer = blockIdx.x / t.strips;
    const int64_t column = ((blockIdx.x - outer * t.strips) * lanes + x) * N;
    begin = outer * s.members * s.inner + column;
    members = column < s.inner ? s.members : 0;
  }
  template <int kDeep = 1, typename F>
  __device__ __forceinline__ void each(F&& f) const {
    int step = 0;
#pragma unroll(kDeep)
    for (int64_t r = y; r < members; r += kThreads / lanes) {
      f(step++, begin + r * inner);
    }
  }
  template <typename A, typename F>
  __device__ __forceinline__ void first(A (&value)[N], F&& f) const {
    __shared__ A of_first[N][32];
    __syncthreads();  // the last ones have been read
    if (y == 0 && members > 0) {
      f(0, begin, value);
    }
    if (y == 0) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        of_first[i][x] = value[i];
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; ++i) {
      value[i] = of_first[i][x];
    }
  }
  template <typename A>
  __device__ __forceinline__ void total(A (&sum)[N]) const {
    __shared__ A of_warp[N][kWarps][32];
    __syncthreads();  // the last total has been read
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const A mine = lanes_sum(sum[i], lanes, 32);
      if (threadIdx.x % 32 < lanes) {
        of_warp[i][threadIdx.x / 32][x] = mine;
      }
      sum[i] = 0;
    }
    __syncthreads();
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        sum[i] += of_warp[i][warp][x];
      }
    }
  }
  static __device__ __forceinline__ bool any(bool condition) {
    return any_of_block(condition);
  }
};

}  // namespace ran::cuda
