// attention_gate with the activations "channel" and "spatial": the kernels and their launches.
#include "attention_gate_groups.cuh"

#include <algorithm>
#include <numeric>

#include "attention_gate_standard.cuh"

namespace ran::cuda {
namespace {

// Staged rows lie in shared memory, where store() does not reach.
template <typename Group, typename T, int N>
__device__ __forceinline__ void put(T* to, const Pack<T, N>& pack) {
  if constexpr (Group::kStaged) {
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
  } else {
    store(to, pack);
  }
}

template <typename T, Activation kKind, typename Group>
__global__ void __launch_bounds__(kThreads)
    attention_gate_groups_kernel(GateShape shape, GateTiling tiling, AttentionGateForward a) {
  using A = accumulate_t<T>;
  constexpr int N = Group::N;
  extern __shared__ __align__(16) unsigned char shared[];
  const void* trunk = a.trunk;
  T* out = static_cast<T*>(a.out);
  if constexpr (Group::kStaged) {
    const Stage<T> stage(shape, tiling);
    T* const l = stage.place(shared, 0, shape, tiling);
    out = stage.place(shared, 1, shape, tiling);
    stage.in(a.logits, l);
    stage.in(a.trunk, out);
    __syncthreads();
    a.logits = l;
    trunk = out;
  }
  const Group walk(shape, tiling);
  const Walked<T, N> logits(a.logits, shared, 0, tiling);
  walk.template each<4>([&](int step, int64_t at) { logits.keep(step, at); });
  const Standard<T, kKind, Group> standard(walk, logits, A(tiling.share));
  walk.template each<2>([&](int step, int64_t at) {
    const auto l = logits.pack(step, at);
    const auto t = *reinterpret_cast<const Pack<T, N>*>(static_cast<const T*>(trunk) + at);
    Pack<T, N> o;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      o.item[i] =
          narrow<T>(gate(standard.mask(standard.z(l, i)), widen(t.item[i]), A(a.residual)));
    }
    put<Group>(out + at, o);
  });
  if constexpr (Group::kStaged) {
    __syncthreads();
    Stage<T>(shape, tiling).out(out, a.out);
  }
}

template <typename T, Activation kKind, typename Group>
__global__ void __launch_bounds__(kThreads, 2)
    attention_gate_groups_backward_kernel(
        GateShape shape, GateTiling tiling, AttentionGateBackward a) {
  using A = accumulate_t<T>;
  using S = Standard<T, kKind, Group>;
  constexpr int N = Group::N;
  constexpr bool kSpatial = kKind == Activation::kSpatial;
  extern __shared__ __align__(16) unsigned char shared[];
  T* grad_logits = static_cast<T*>(a.grad_logits);
  T* grad_trunk = static_cast<T*>(a.grad_trunk);
  if constexpr (Group::kStaged) {
    const Stage<T> stage(shape, tiling);
    grad_logits = stage.place(shared, 0, shape, tiling);
    grad_trunk = stage.place(shared, 1, shape, tiling);
    T* const t = stage.place(shared, 2, shape, tiling);
    stage.in(a.logits, grad_logits);
    stage.in(a.grad, grad_trunk);
    stage.in(a.trunk, t);
    __syncthreads();
    a.logits = grad_logits;
    a.grad = grad_trunk;
    a.trunk = t;
  }
  const Group walk(shape, tiling);
  const Walked<T, N> logits(a.logits, shared, 0, tiling);
  const Walked<T, N> grad(a.grad, shared, 1, tiling);
  const Walked<T, N> trunk(a.trunk, shared, 2, tiling);
  walk.template each<2>([&](int step, int64_t at) {
    logits.keep(step, at);
    grad.keep(step, at);
    trunk.keep(step, at);
  });
  const S standard(walk, logits, A(tiling.share));
  // u = d out / d z
  const auto u = [](A g, A z, A t) {
    return kSpatial ? gate_grad_sigmoid(g, S::mask(z), t, A(1)) : g * t;
  };
  A first[Group::kGroups] = {};
  A second[Group::kGroups] = {};
  walk.each([&](int step, int64_t at) {
    const auto g = grad.pack(step, at);
    const auto l = logits.pack(step, at);
    const auto t = trunk.pack(step, at);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const A z = standard.z(l, i);
      const A to_z = u(widen(g.item[i]), z, widen(t.item[i]));
      if constexpr (kSpatial) {
        first[S::group(i)] += to_z;
      }
      second[S::group(i)] += to_z * z;
    }
  });
  walk.total(second);
  if constexpr (kSpatial) {
    walk.total(first);
  }
#pragma unroll
  for (int e = 0; e < Group::kGroups; ++e) {
    if constexpr (kSpatial) {
      first[e] *= A(tiling.share);
      second[e] *= A(tiling.share);
    } else if (standard.scale[e] * standard.shrink(e) >= A(1 / kChannelEps)) {
      second[e] = 0;  // a clamped norm is a constant, and has no part in the gradient
    }
  }
  walk.each([&](int step, int64_t at) {
    const auto g = grad.pack(step, at);
    const auto l = logits.pack(step, at);
    const auto t = trunk.pack(step, at);
    Pack<T, N> gl;
    Pack<T, N> gt;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int e = S::group(i);
      const A incoming = widen(g.item[i]);
      const A z = standard.z(l, i);
      const A to_z = u(incoming, z, widen(t.item[i]));
      const A scale = standard.scale[e] * standard.shrink(e);
      gl.item[i] = narrow<T>(gate_grad_group(to_z, z, scale, first[e], second[e]));
      gt.item[i] = narrow<T>(gate_grad_trunk(incoming, S::mask(z), A(a.residual)));
    }
    put<Group>(grad_logits + at, gl);
    put<Group>(grad_trunk + at, gt);
  });
  if constexpr (Group::kStaged) {
    __syncthreads();
    const Stage<T> stage(shape, tiling);
    stage.out(grad_logits, a.grad_logits);
    stage.out(grad_trunk, a.grad_trunk);
  }
}

// ---- launches ---------------------------------------------------------------------------------

// Forwards the logits alone are walked twice, backwards all three inputs are.
constexpr int walked_again(const AttentionGateForward&) {
  return 1;
}
constexpr int walked_again(const AttentionGateBackward&) {
  return 3;
}
constexpr int staged(const AttentionGateForward&) {
  return 2;
}
constexpr int staged(const AttentionGateBackward&) {
  return 3;
}

template <typename T, Activation kKind, typename Group>
auto kernel_for(const AttentionGateForward&) {
  return attention_gate_groups_kernel<T, kKind, Group>;
}
template <typename T, Activation kKind, typename Group>
auto kernel_for(const AttentionGateBackward&) {
  return attention_gate_groups_backward_kernel<T, kKind, Group>;
}

// What a block of every GPU may have without asking, and what one asks for at most.
constexpr int64_t kSharedBytes = 48 << 10;
constexpr int64_t kMostSharedBytes = 200 << 10;

template <typename T, Activation kKind, typename Group, typename Args>
int launch(
    const GateShape& s, GateTiling t, const Args& args, int64_t blocks, cudaStream_t stream) {
  const auto kernel = kernel_for<T, kKind, Group>(args);
  t.share = 1.0 / static_cast<double>(s.members);
  int64_t bytes = 0;
  if (Group::kStaged) {
    bytes = staged(args) * (kThreads >> t.log_lanes) * s.members * sizeof(T);
  } else {
    // Where a tensor is read again changes no result, so that it may depend on the GPU.
    const int64_t each = int64_t{t.steps} * kThreads * Group::N * sizeof(T);
    t.kept = static_cast<int>(std::min<int64_t>(walked_again(args), kMostSharedBytes / each));
    for (; t.kept > 0; --t.kept) {
      bytes = t.kept * each;
      if (bytes <= kSharedBytes || allow_shared(kernel, bytes)) {
        break;
      }
    }
    bytes = t.kept * each;
  }
  kernel<<<grid_of(blocks), kThreads, bytes, stream>>>(s, t, args);
  return cudaGetLastError();
}

int steps_for(int64_t packs, int64_t threads) {
  return static_cast<int>(std::min<int64_t>(ceil_div(packs, threads), INT32_MAX / kThreads));
}

// Packs of a row that a warp still walks alone: four a lane.
constexpr int64_t kWarpPacks = 128;

template <typename T, int N, Activation kKind, typename Args>
int launch_rows(const GateShape& s, const Args& args, cudaStream_t stream) {
  const int64_t packs = ceil_div(s.members, N);
  GateTiling t{};
  if (packs <= kWarpPacks) {
    t.log_lanes = log_lanes_for(packs);
    t.steps = steps_for(packs, 1 << t.log_lanes);
    const int64_t blocks = ceil_div(s.outer, kThreads >> t.log_lanes);
    return launch<T, kKind, WarpRows<N>>(s, t, args, blocks, stream);
  }
  t.steps = steps_for(packs, kThreads);
  return launch<T, kKind, BlockRow<N>>(s, t, args, s.outer, stream);
}

// Rows that are no whole packs are so together, with as many rows to a block as it has groups of
// lanes. A lane takes at least four elements.
template <typename T, Activation kKind, typename Args>
bool launch_staged(const GateShape& s, const Args& args, cudaStream_t stream, int& error) {
  GateTiling t{};
  t.log_lanes = log_lanes_for(s.members / 4);
  const int64_t rows = kThreads >> t.log_lanes;
  const int64_t fold = kPack<T> / std::gcd<int64_t>(kPack<T>, s.members);
  const bool fits = staged(args) * rows * s.members * sizeof(T) <= kSharedBytes;
  if (!fits || rows % fold != 0 || s.outer % fold != 0) {
    return false;
  }
  error = launch<T, kKind, StagedRows>(s, t, args, ceil_div(s.outer, rows), stream);
  return true;
}

// Strips are 128 bytes wide or narrower, down to the 32 bytes that memory moves at least, so that
// there are enough blocks and their groups stay in shared memory. Where rows start anywhere in such a
// sector, a strip touches one more than it fills, and is 64 bytes wide if blocks and memory suffice.
constexpr int64_t kStripBytes = 128;
constexpr int64_t kSectorBytes = 32;
constexpr int64_t kGroupBytes = 64 << 10;
constexpr int64_t kFewBlocks = kBusyBlocks / 4;

template <typename T, int N, Activation kKind, typename Args>
int launch_columns(const GateShape& s, const Args& args, cudaStream_t stream) {
  constexpr int64_t kBytes = N * sizeof(T);
  GateTiling t{};
  t.log_lanes = log_lanes_for(std::min(kStripBytes / kBytes, ceil_div(s.inner, N)));
  const auto strips = [&] { return ceil_div(s.inner, int64_t{N} << t.log_lanes); };
  const auto bytes = [&] { return walked_again(args) * s.members * kBytes << t.log_lanes; };
  const auto narrow_enough = [&] {
    const int64_t width = kBytes << t.log_lanes;
    if (width <= 2 * kSectorBytes && s.inner * sizeof(T) % kSectorBytes != 0) {
      return bytes() <= kMostSharedBytes && s.outer * strips() >= kFewBlocks;
    }
    return bytes() <= kGroupBytes && s.outer * strips() >= kBusyBlocks;
  };
  while ((kBytes << t.log_lanes) > kSectorBytes && !narrow_enough()) {
    --t.log_lanes;
  }
  t.strips = strips();
  t.steps = steps_for(s.members, kThreads >> t.log_lanes);
  return launch<T, kKind, Columns<N>>(s, t, args, s.outer * t.strips, stream);
}

// A pack needs every row, or every member of neighbouring columns, to start at its alignment. Rows of
// float64 stay single.
template <typename T, Activation kKind, typename Args>
int launch_kind(const GateShape& s, const Args& args, bool on_16_bytes, cudaStream_t stream) {
  constexpr int V = kPack<T>;
  if (s.inner == 1) {
    constexpr int kRow = sizeof(T) == 8 ? 1 : V;
    int error = cudaSuccess;
    if (on_16_bytes && s.members % V == 0) {
      return launch_rows<T, kRow, kKind>(s, args, stream);
    }
    return on_16_bytes && launch_staged<T, kKind>(s, args, stream, error)
        ? error
        : launch_rows<T, 1, kKind>(s, args, stream);
  }
  if (on_16_bytes && s.inner % V == 0) {
    return launch_columns<T, V, kKind>(s, args, stream);
  }
  if constexpr (V > 2) {
    if (on_16_bytes && s.inner % (V / 2) == 0) {
      return launch_columns<T, V / 2, kKind>(s, args, stream);
    }
  }
  return launch_columns<T, 1, kKind>(s, args, stream);
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
