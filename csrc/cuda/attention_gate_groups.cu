#include "attention_gate_groups.cuh"
#include "kernel.cuh"

namespace ran::cuda {
namespace {

// A block is 8 warps. What a group of logits is to it depends on where its members lie:
//
//   WarpRow   members beside each other, few: a warp to a group
//   BlockRow  members beside each other, many: the block to a group
//   Columns   members `inner` apart: a lane to N neighbouring groups, the warps share the members
//
// Each walks its members in packs of N elements with each(f), f(offset of the pack), and adds up what
// its threads found with total(). Columns has a sum for each of the N groups, the rows have one.
constexpr int kWarps = kThreads / 32;

template <typename A>
__device__ __forceinline__ A warp_sum(A value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, step);
  }
  return value;
}

template <int N>
struct WarpRow {
  static constexpr int kGroups = 1;
  int64_t begin;
  int64_t members;

  __device__ explicit WarpRow(const GateShape& s) : members(s.members) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
    begin = row * s.members;
    members = row < s.outer ? s.members : 0;
  }
  template <typename F>
  __device__ __forceinline__ void each(F&& f) const {
    for (int64_t i = threadIdx.x % 32 * N; i < members; i += 32 * N) {
      f(begin + i);
    }
  }
  template <typename A>
  __device__ __forceinline__ void total(A (&sum)[1]) const {
    sum[0] = warp_sum(sum[0]);
  }
};

template <int N>
struct BlockRow {
  static constexpr int kGroups = 1;
  int64_t begin;
  int64_t members;

  __device__ explicit BlockRow(const GateShape& s)
      : begin(static_cast<int64_t>(blockIdx.x) * s.members), members(s.members) {}
  template <typename F>
  __device__ __forceinline__ void each(F&& f) const {
    for (int64_t i = static_cast<int64_t>(threadIdx.x) * N; i < members; i += kThreads * N) {
      f(begin + i);
    }
  }
  template <typename A>
  __device__ __forceinline__ void total(A (&sum)[1]) const {
    __shared__ A of_warp[kWarps];
    const A mine = warp_sum(sum[0]);
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
};

template <int N>
struct Columns {
  static constexpr int kGroups = N;
  int64_t begin;
  int64_t members;
  int64_t inner;

  __device__ explicit Columns(const GateShape& s) : inner(s.inner) {
    const int64_t strips = (s.inner + 32 * N - 1) / (32 * N);
    const int64_t column = (blockIdx.x % strips * 32 + threadIdx.x % 32) * N;
    begin = blockIdx.x / strips * s.members * s.inner + column;
    members = column < s.inner ? s.members : 0;
  }
  template <typename F>
  __device__ __forceinline__ void each(F&& f) const {
    for (int64_t r = threadIdx.x / 32; r < members; r += kWarps) {
      f(begin + r * inner);
    }
  }
  template <typename A>
  __device__ __forceinline__ void total(A (&sum)[N]) const {
    __shared__ A of_warp[N][kWarps][32];
    __syncthreads();  // the last total has been read
#pragma unroll
    for (int i = 0; i < N; ++i) {
      of_warp[i][threadIdx.x / 32][threadIdx.x % 32] = sum[i];
      sum[i] = 0;
    }
    __syncthreads();
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        sum[i] += of_warp[i][warp][threadIdx.x % 32];
      }
    }
  }
};

template <typename T, int N>
__device__ __forceinline__ Pack<T, N> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}

// z = (logit - center) * scale; see common/gate.h.
template <typename T, int N, Activation kKind, typename Group>
struct Standard {
  using A = accumulate_t<T>;
  A center[Group::kGroups] = {};
  A scale[Group::kGroups] = {};

  __device__ __forceinline__ static int group(int item) {
    return Group::kGroups == 1 ? 0 : item;
  }

  __device__ Standard(const Group& walk, const T* logits, A count) {
    if constexpr (kKind == Activation::kSpatial) {
      walk.each([&](int64_t at) {
        const auto l = load_pack<T, N>(logits + at);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          center[group(i)] += widen(l.item[i]);
        }
      });
      walk.total(center);
#pragma unroll
      for (A& c : center) {
        c /= count;
      }
    }
    // A second walk: the difference of sums of squares would cancel.
    walk.each([&](int64_t at) {
      const auto l = load_pack<T, N>(logits + at);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const A d = widen(l.item[i]) - center[group(i)];
        scale[group(i)] += d * d;
      }
    });
    walk.total(scale);
#pragma unroll
    for (A& s : scale) {
      // rsqrt has no slow path, whose call would put registers on the stack.
      if constexpr (kKind == Activation::kSpatial) {
        s = rsqrt(s / count + A(kSpatialEps));
      } else {
        const A inverse = rsqrt(s);
        s = inverse > A(1 / kChannelEps) ? A(1 / kChannelEps) : inverse;  // so that a NaN stays one
      }
    }
  }

  __device__ __forceinline__ A z(const Pack<T, N>& logits, int i) const {
    return (widen(logits.item[i]) - center[group(i)]) * scale[group(i)];
  }
  __device__ __forceinline__ static A mask(A z) {
    return kKind == Activation::kSpatial ? sigmoid(z) : z;
  }
};

template <typename T, int N, Activation kKind, typename Group>
__global__ void __launch_bounds__(kThreads)
    attention_gate_groups_kernel(GateShape shape, AttentionGateForward a) {
  using A = accumulate_t<T>;
  const Group walk(shape);
  const auto* logits = static_cast<const T*>(a.logits);
  const Standard<T, N, kKind, Group> standard(walk, logits, A(shape.members));
  walk.each([&](int64_t at) {
    const auto l = load_pack<T, N>(logits + at);
    const auto t = load_pack<T, N>(static_cast<const T*>(a.trunk) + at);
    Pack<T, N> o;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      o.item[i] =
          narrow<T>(gate(standard.mask(standard.z(l, i)), widen(t.item[i]), A(a.residual)));
    }
    *reinterpret_cast<Pack<T, N>*>(static_cast<T*>(a.out) + at) = o;
  });
}

template <typename T, int N, Activation kKind, typename Group>
__global__ void __launch_bounds__(kThreads)
    attention_gate_groups_backward_kernel(GateShape shape, AttentionGateBackward a) {
  using A = accumulate_t<T>;
  using S = Standard<T, N, kKind, Group>;
  const Group walk(shape);
  const auto* grad = static_cast<const T*>(a.grad);
  const auto* logits = static_cast<const T*>(a.logits);
  const auto* trunk = static_cast<const T*>(a.trunk);
  const S standard(walk, logits, A(shape.members));
  // u = d out / d z
  const auto u = [](A g, A z, A t) {
    return kKind == Activation::kSpatial ? gate_grad_sigmoid(g, S::mask(z), t, A(1)) : g * t;
  };
  A first[Group::kGroups] = {};
  A second[Group::kGroups] = {};
  walk.each([&](int64_t at) {
    const auto g = load_pack<T, N>(grad + at);
    const auto l = load_pack<T, N>(logits + at);
    const auto t = load_pack<T, N>(trunk + at);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const A z = standard.z(l, i);
      const A to_z = u(widen(g.item[i]), z, widen(t.item[i]));
      if constexpr (kKind == Activation::kSpatial) {
        first[S::group(i)] += to_z;
      }
      second[S::group(i)] += to_z * z;
    }
  });
  walk.total(second);
  if constexpr (kKind == Activation::kSpatial) {
    walk.total(first);
  }
#pragma unroll
  for (int e = 0; e < Group::kGroups; ++e) {
    if constexpr (kKind == Activation::kSpatial) {
      first[e] /= A(shape.members);
      second[e] /= A(shape.members);
    } else if (standard.scale[e] >= A(1 / kChannelEps)) {
      second[e] = 0;  // a clamped norm is a constant, and has no part in the gradient
    }
  }
  walk.each([&](int64_t at) {
    const auto g = load_pack<T, N>(grad + at);
    const auto l = load_pack<T, N>(logits + at);
    const auto t = load_pack<T, N>(trunk + at);
    Pack<T, N> gl;
    Pack<T, N> gt;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int e = S::group(i);
      const A incoming = widen(g.item[i]);
      const A z = standard.z(l, i);
      const A to_z = u(incoming, z, widen(t.item[i]));
      gl.item[i] = narrow<T>(gate_grad_group(to_z, z, standard.scale[e], first[e], second[e]));
      gt.item[i] = narrow<T>(gate_grad_trunk(incoming, S::mask(z), A(a.residual)));
    }
    *reinterpret_cast<Pack<T, N>*>(static_cast<T*>(a.grad_logits) + at) = gl;
    *reinterpret_cast<Pack<T, N>*>(static_cast<T*>(a.grad_trunk) + at) = gt;
  });
}

template <typename T, int N, Activation kKind, typename Group>
int launch(const GateShape& s, const AttentionGateForward& a, int64_t blocks, cudaStream_t stream) {
  attention_gate_groups_kernel<T, N, kKind, Group>
      <<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(s, a);
  return cudaGetLastError();
}

template <typename T, int N, Activation kKind, typename Group>
int launch(
    const GateShape& s, const AttentionGateBackward& a, int64_t blocks, cudaStream_t stream) {
  attention_gate_groups_backward_kernel<T, N, kKind, Group>
      <<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(s, a);
  return cudaGetLastError();
}

// Members that a warp still walks alone: four packs of 16-bit elements a lane.
constexpr int64_t kWarpMembers = 1024;

template <typename T, int N, Activation kKind, typename Args>
int launch_rows(const GateShape& s, const Args& args, cudaStream_t stream) {
  return s.members <= kWarpMembers
      ? launch<T, N, kKind, WarpRow<N>>(s, args, (s.outer + kWarps - 1) / kWarps, stream)
      : launch<T, N, kKind, BlockRow<N>>(s, args, s.outer, stream);
}

template <typename T, int N, Activation kKind, typename Args>
int launch_columns(const GateShape& s, const Args& args, cudaStream_t stream) {
  const int64_t strips = (s.inner + 32 * N - 1) / (32 * N);
  return launch<T, N, kKind, Columns<N>>(s, args, s.outer * strips, stream);
}

// A pack needs every row, or every member of neighbouring columns, to start at its alignment. Rows of
// float64 stay single. A column of 32 bits is wide enough by itself; 16-bit columns go in pairs, so
// that a warp reads 128 bytes at a time and there are still enough blocks for maps of 14×14.
template <typename T, Activation kKind, typename Args>
int launch_kind(const GateShape& s, const Args& args, bool on_16_bytes, cudaStream_t stream) {
  constexpr int kRow = sizeof(T) == 8 ? 1 : kPack<T>;
  constexpr int kColumn = sizeof(T) == 2 ? 2 : 1;
  if (s.inner == 1) {
    return on_16_bytes && s.members % kRow == 0 ? launch_rows<T, kRow, kKind>(s, args, stream)
                                                : launch_rows<T, 1, kKind>(s, args, stream);
  }
  return on_16_bytes && s.inner % kColumn == 0 ? launch_columns<T, kColumn, kKind>(s, args, stream)
                                               : launch_columns<T, 1, kKind>(s, args, stream);
}

template <typename Args>
int launch_any(
    DType dtype, const GateShape& s, const Args& args, bool on_16_bytes, cudaStream_t stream) {
  int error = cudaSuccess;
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    error = s.activation == Activation::kChannel
        ? launch_kind<T, Activation::kChannel>(s, args, on_16_bytes, stream)
        : launch_kind<T, Activation::kSpatial>(s, args, on_16_bytes, stream);
  });
  return error;
}

}  // namespace

int attention_gate_groups(
    DType dtype, const GateShape& shape, const AttentionGateForward& a, cudaStream_t stream) {
  return launch_any(dtype, shape, a, aligned(a.logits, a.trunk, a.out), stream);
}

int attention_gate_groups_backward(
    DType dtype, const GateShape& shape, const AttentionGateBackward& a, cudaStream_t stream) {
  const bool on_16_bytes = aligned(a.grad, a.logits, a.trunk, a.grad_logits, a.grad_trunk);
  return launch_any(dtype, shape, a, on_16_bytes, stream);
}

}  // namespace ran::cuda
