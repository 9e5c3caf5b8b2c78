// What the kernels of upsample share that read each element once, from shared memory on.
#pragma once

#include <algorithm>
#include <cmath>

#include "../common/bilinear.h"
#include "../upsample.h"
#include "kernel.cuh"

namespace ran::cuda {

// A block may have this much shared memory without asking for it.
constexpr int64_t kSharedBytes = 48 << 10;

// Threads that the 132 multiprocessors of an H100 hold at 64 registers each: what is launched bounds
// the registers to that.
constexpr int64_t kResident = 132 * 1024;

// Elements that a launch addresses in 32 bits, with room for what is added to its last offset.
constexpr int64_t kSlice = INT32_MAX - (1 << 20);

// Calls launch(first, count) for slices of `images`, which do not depend on each other, of at most
// `most`. A slice begins on a multiple of 16 bytes where that many images fit. Returns a cudaError_t.
template <typename Launch>
int in_slices(int64_t images, int64_t most, Launch&& launch) {
  if (most < 1) {
    return cudaErrorInvalidConfiguration;  // an image beyond any GPU's memory
  }
  most = most > 16 ? most / 16 * 16 : most;
  for (int64_t first = 0; first < images; first += most) {
    launch(first, std::min(most, images - first));
    if (const int error = cudaGetLastError()) {
      return error;
    }
  }
  return cudaSuccess;
}

// Blocks that share `tiles` tiles in a loop. Between one wave of blocks and four, the last one would
// leave much of the GPU idle: there every block takes several tiles, all as many, in one wave.
inline dim3 blocks_sharing(int64_t tiles, int threads) {
  const int64_t wave = kResident / threads;
  const int64_t each = tiles < 4 * wave ? ceil_div(tiles, wave) : 1;
  return grid_of(ceil_div(tiles, each));
}

// Blocks for so many threads; where a grid cannot have them all, they go on a grid's length further.
inline dim3 looping_blocks_for(int64_t threads) {
  const int64_t blocks = threads / kThreads + (threads % kThreads != 0);  // the sum may overflow
  return grid_of(std::min(blocks, kMaxGridX));
}

// a / b for a >= 0, in 32 bits where they do: a 64-bit division is a call of 70 instructions.
__device__ __forceinline__ int64_t divide(int64_t a, int b) {
  return a >> 32 == 0 ? static_cast<unsigned>(a) / static_cast<unsigned>(b) : a / b;
}

// Copies `count` elements to shared memory in packs; the last one may have more of the `available`.
template <typename T>
__device__ __forceinline__ void stage(
    const T* __restrict__ from, int available, int count, T* to) {
  using P = Pack<T, kPack<T>>;
  for (int i = static_cast<int>(threadIdx.x) * kPack<T>; i < count; i += kThreads * kPack<T>) {
    if (i + kPack<T> <= available) {
      *reinterpret_cast<P*>(to + i) = *reinterpret_cast<const P*>(from + i);
    } else {
      for (int k = i; k < available; ++k) {
        to[k] = from[k];
      }
    }
  }
}

// ---- how much is read ---------------------------------------------------------------------------

// At most so many source elements are read by `targets` neighbouring ones.
template <typename A>
int64_t sources_of(const Axis<A>& axis, int64_t targets) {
  return static_cast<int64_t>(std::ceil(static_cast<double>(targets - 1) * axis.scale)) + 3;
}

// At most so many targets read `sources` neighbouring elements. Those before the first element's
// centre, where there are any, read elements 0 and 1.
template <typename A>
int64_t readers_of(const Axis<A>& axis, int64_t sources) {
  if (axis.source == axis.target) {
    return sources;
  }
  if (axis.source == 1 || axis.target == 1) {
    return axis.target * sources;
  }
  const double inside = static_cast<double>(sources + 1) / axis.scale;
  const double at_edge = axis.align_corners ? 0 : inside + 0.5 / axis.scale - 0.5;
  return static_cast<int64_t>(std::ceil(std::max(inside, at_edge))) + 1;
}

// ---- the gradient of one column -----------------------------------------------------------------

// Twofold enlargement has up to 5 targets that read an element; rounding may bring one more.
constexpr int kReaders = 6;

// The targets that read one source element, `count` from `first` on, and their weights. Where both
// taps of a target are the element, its bit is set in `twice`: the last element alone has such ones.
template <typename A>
struct Readers {
  int first;
  int count;
  unsigned twice = 0;
  A weight[kReaders];

  __device__ __forceinline__ Readers(const Axis<A>& axis, int source)
      : first(first_reader(axis, source)), count(last_reader(axis, source) - first) {
#pragma unroll
    for (int i = 0; i < kReaders; ++i) {
      const Tap<A> tap = tap_of(axis, first + i);
      weight[i] = tap.first == source ? tap.first_weight : tap.second_weight;
      twice |= static_cast<unsigned>(i < count && tap.first == tap.second) << i;
    }
  }

  // Their sum in a row of gradients that starts at `row`, the next one `stride` further on.
  template <typename T, int N>
  __device__ __forceinline__ void sum(
      const Axis<A>& axis, const Pack<T, N>* row, int stride, A (&to)[N]) const {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      to[k] = 0;
    }
#pragma unroll
    for (int i = 0; i < kReaders; ++i) {
      if (i < count) {
        const Pack<T, N> g = row[(first + i) * stride];
#pragma unroll
        for (int k = 0; k < N; ++k) {
          to[k] += weight[i] * widen(g.item[k]);
        }
        if (twice >> i & 1) {
          const A again = tap_of(axis, first + i).second_weight;
#pragma unroll
          for (int k = 0; k < N; ++k) {
            to[k] += again * widen(g.item[k]);
          }
        }
      }
    }
  }
};

// Walks down the target rows and hands out the sums of source rows, one after the other. A target
// row adds to two of them, so two are open at a time.
template <typename A, int N>
struct OpenRows {
  int row;  // the upper one
  A upper[N] = {};
  A lower[N] = {};

  explicit __device__ __forceinline__ OpenRows(int first) : row(first) {}

  // Closes the rows before `until`.
  template <typename Emit>
  __device__ __forceinline__ void close(int until, Emit&& emit) {
    for (; row < until; ++row) {
      emit(row, upper);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        upper[k] = lower[k];
        lower[k] = 0;
      }
    }
  }

  // Adds a target row whose tap.first is `row`.
  __device__ __forceinline__ void add(const Tap<A>& tap, const A (&sum)[N]) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      upper[k] += tap.first_weight * sum[k];
    }
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const A more = tap.second_weight * sum[k];
      if (tap.second == tap.first) {
        upper[k] += more;
      } else {
        lower[k] += more;
      }
    }
  }
};

}  // namespace ran::cuda
