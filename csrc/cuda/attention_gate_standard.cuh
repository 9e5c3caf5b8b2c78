// What the grouped kernels of attention_gate compute of a group before they apply it, and where
// they find a tensor that they have read before.
#pragma once

#include "attention_gate_walks.cuh"

namespace ran::cuda {

// A tensor as a block walks it: again in global memory, or in shared memory where the launch keeps
// it. There a thread finds what it has put, in the order of its steps; packs of the threads of a
// warp lie side by side.
template <typename T, int N>
struct Walked {
  using P = Pack<T, N>;
  const T* from;
  P* kept;  // null: read again

  __device__ Walked(const void* tensor, unsigned char* shared, int index, const GateTiling& t)
      : from(static_cast<const T*>(tensor)), kept(nullptr) {
    if (index < t.kept) {
      kept = reinterpret_cast<P*>(shared) + index * t.steps * kThreads + threadIdx.x;
    }
  }
  __device__ __forceinline__ void keep(int step, int64_t at) const {
    if (kept != nullptr) {
      kept[step * kThreads] = *reinterpret_cast<const P*>(from + at);
    }
  }
  __device__ __forceinline__ P pack(int step, int64_t at) const {
    if (kept != nullptr) {
      return kept[step * kThreads];
    }
    return *reinterpret_cast<const P*>(from + at);
  }
};

// z = (logit * shrink - center - rest) * scale; see common/gate.h.
template <typename T, Activation kKind, typename Group>
struct Standard {
  using A = accumulate_t<T>;
  static constexpr int N = Group::N;
  static constexpr int kGroups = Group::kGroups;
  static constexpr bool kSpatial = kKind == Activation::kSpatial;
  unsigned shrunk = 0;  // a bit for each group; registers are scarce
  A center[kSpatial ? kGroups : 1];
  A rest[kSpatial ? kGroups : 1];
  A scale[kGroups];

  __device__ __forceinline__ static int group(int item) {
    return kGroups == 1 ? 0 : item;
  }

  __device__ __forceinline__ A shrink(int e) const {
    return (shrunk >> e & 1) != 0 ? kShrink<A> : A(1);
  }

  // `share` is 1 / members. A division would have a slow path, whose call puts registers on the stack.
  __device__ Standard(const Group& walk, const Walked<T, N>& logits, A share) {
    measure(walk, logits, share);
    unsigned infinite = 0;  // or NaN
#pragma unroll
    for (int e = 0; e < kGroups; ++e) {
      infinite |= scale[e] - scale[e] == 0 ? 0u : 1u << e;
    }
    if (walk.any(infinite != 0)) {
      shrunk = infinite;
      measure(walk, logits, share);
    }
#pragma unroll
    for (int e = 0; e < kGroups; ++e) {
      // rsqrt has none either.
      if constexpr (kSpatial) {
        scale[e] = rsqrt(scale[e] * share + A(kSpatialEps) * shrink(e) * shrink(e));
      } else {
        const A inverse = rsqrt(scale[e]);
        const bool clamped = (shrunk >> e & 1) == 0 && inverse > A(1 / kChannelEps);
        scale[e] = clamped ? A(1 / kChannelEps) : inverse;  // so that a NaN stays one
      }
    }
  }

  // The center, and in `scale` the sum of squared deviations from it.
  __device__ __forceinline__ void measure(const Group& walk, const Walked<T, N>& logits, A share) {
    if constexpr (kSpatial) {
      A shift[kGroups] = {};
      walk.first(shift, [&](int step, int64_t at, A(&to)[kGroups]) {
        const auto l = logits.pack(step, at);
#pragma unroll
        for (int e = 0; e < kGroups; ++e) {
          to[e] = widen(l.item[e]) * shrink(e);
        }
      });
      A sum[kGroups] = {};
      walk.template each<2>([&](int step, int64_t at) {
        const auto l = logits.pack(step, at);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          sum[group(i)] += widen(l.item[i]) * shrink(group(i)) - shift[group(i)];
        }
      });
      walk.total(sum);
#pragma unroll
      for (int e = 0; e < kGroups; ++e) {
        split_sum(shift[e], sum[e] * share, center[e], rest[e]);
      }
    }
    // A second walk: the difference of sums of squares would cancel.
#pragma unroll
    for (A& s : scale) {
      s = 0;
    }
    walk.template each<2>([&](int step, int64_t at) {
      const auto l = logits.pack(step, at);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const A d = deviation(l, i);
        scale[group(i)] += d * d;
      }
    });
    walk.total(scale);
  }

  __device__ __forceinline__ A deviation(const Pack<T, N>& logits, int i) const {
    const A l = widen(logits.item[i]) * shrink(group(i));
    if constexpr (kSpatial) {
      return (l - center[group(i)]) - rest[group(i)];
    } else {
      return l;
    }
  }
  __device__ __forceinline__ A z(const Pack<T, N>& logits, int i) const {
    return deviation(logits, i) * scale[group(i)];
  }
  __device__ __forceinline__ static A mask(A z) {
    return kSpatial ? sigmoid(z) : z;
  }
};

// The elements that the block's rows have in a tensor, copied to or from shared memory in packs.
template <typename T>
struct Stage {
  static constexpr int V = kPack<T>;
  int64_t first;
  int packs;

  __device__ Stage(const GateShape& s, const GateTiling& t) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads >> t.log_lanes);
    const int64_t rows = min(static_cast<int64_t>(kThreads >> t.log_lanes), s.outer - row);
    first = row * s.members;
    packs = static_cast<int>(rows * s.members / V);
  }
  // Where tensor `index` of the block lies in shared memory.
  static __device__ __forceinline__ T* place(
      unsigned char* shared, int index, const GateShape& s, const GateTiling& t) {
    return reinterpret_cast<T*>(shared) + index * (kThreads >> t.log_lanes) * s.members;
  }
  __device__ __forceinline__ void in(const void* from, T* to) const {
    const auto* source = reinterpret_cast<const Pack<T, V>*>(static_cast<const T*>(from) + first);
#pragma unroll 2
    for (int i = threadIdx.x; i < packs; i += kThreads) {
      reinterpret_cast<Pack<T, V>*>(to)[i] = source[i];
    }
  }
  __device__ __forceinline__ void out(const T* from, void* to) const {
#pragma unroll 2
    for (int i = threadIdx.x; i < packs; i += kThreads) {
      const Pack<T, V> pack = reinterpret_cast<const Pack<T, V>*>(from)[i];
      store(static_cast<T*>(to) + first + i * V, pack);
    }
  }
};

}  // namespace ran::cuda
