// Reductions over N, H, W of every channel, in one read of the features.
//
// Each thread keeps to one place: as it walks, the V elements of its packs are of the same channels,
// so it adds up V slots without asking which. At the end of a block the slots of each channel are
// put together, and a second launch puts the blocks' parts together where several share a channel.
//
// An operator says what is reduced and how:
//
//   T, A                       element and arithmetic types
//   kInputs, in[kInputs]       tensors read
//   kWrites, written           whether a tensor is written, and that tensor
//   kDeep                      packs of each input whose loads are in flight together
//   Channel, channel(c)        what slots need of their channel, and loads it
//   Slot, begin(slot, v)       what a slot adds up, empty, and before its first element
//   Step, step(k)              what the elements of a thread's k-th pack have in common, k from 1
//   take(slot, v, channel, step)  adds one element; returns what is written for it
//   Part, part(slot, count)    a slot of `count` elements, to be merged with others of the channel
//   kPlanes, keep(part, to, stride)  stores a block's part, as kPlanes numbers
//   Whole, whole(from, stride, count)  loads it again, to be merged with other blocks'
//   finish(whole or part, c)   stores a result, of several blocks or of one
#pragma once

#include <type_traits>

#include "batch.cuh"
#include "reduce.cuh"

namespace ran::cuda {

template <typename Op, int V, Walk kWalk>
__global__ void __launch_bounds__(kThreads, 2)
    reduce_batch_kernel(Op op, Batch g, int parts_at, typename Op::A* partials) {
  using T = typename Op::T;
  using A = typename Op::A;
  using Channel = typename Op::Channel;
  using Part = typename Op::Part;
  // What a thread has of the block's channels.
  constexpr int kParts = kWalk == Walk::kMaps ? 1 : kWalk == Walk::kRuns ? 2 : V;
  constexpr int kColumn = kThreads + 1;  // odd: parts of a thread are in different banks
  constexpr bool kChannels = !std::is_empty_v<Channel>;
  constexpr int kHeld = kWalk == Walk::kMaps ? 1 : V;
  extern __shared__ __align__(16) unsigned char shared[];
  Channel* const channels = reinterpret_cast<Channel*>(shared);
  Part* const parts = reinterpret_cast<Part*>(shared + parts_at);
  const int y = threadIdx.x / g.tx;
  const int x = threadIdx.x - y * g.tx;
  const int chunk = blockIdx.x / g.tiles;
  const int tile = blockIdx.x - chunk * g.tiles;
  const int first = tile * g.group;
  const int group = min(g.group, g.c - first);
  const int64_t top = chunk * g.chunk;
  const int64_t rows = min(g.chunk, g.rows - top);

  // The packs that this thread takes, and of which of the block's channels its slots are.
  const bool mine = kWalk == Walk::kMaps || (y < g.ty && int64_t{tile} * g.tx + x < g.width);
  const int down = kWalk == Walk::kMaps ? x : y;
  const int apart = kWalk == Walk::kMaps ? kThreads : g.ty;
  const int steps = mine && down < rows ? static_cast<int>((rows - down - 1) / apart) + 1 : 0;
  const int run = kWalk == Walk::kMaps ? 0 : x * V / g.hw;
  const int turn = kWalk == Walk::kMaps ? V : (run + 1) * g.hw - x * V;
  const auto channel_of = [&](int i) {
    return kWalk == Walk::kMaps   ? 0
           : kWalk == Walk::kRuns ? run + (i >= turn)
                                  : (x * V + i) / g.hw;
  };

  Channel channel[kHeld];
  if constexpr (kChannels) {
#pragma unroll 1
    for (int i = threadIdx.x; i < group; i += kThreads) {
      channels[i] = op.channel(first + i);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      channel[i] = channels[min(channel_of(i), group - 1)];
    }
  }
  typename Op::Slot slot[V] = {};

  // Of kMaps: the sample and the pack of the map, and how far apart two of a thread's are.
  int64_t sample = 0;
  int pack = 0;
  int64_t offset = 0;
  const int samples_apart = kWalk == Walk::kMaps ? kThreads / g.packs : 0;
  const int packs_apart = kThreads - samples_apart * g.packs;
  if constexpr (kWalk == Walk::kMaps) {
    sample = (top + x) / g.packs;
    pack = static_cast<int>(top + x - sample * g.packs);
  } else {
    offset = (top + y) * g.stride + (int64_t{tile} * g.tx + x) * V;
  }
  const auto next = [&] {
    int64_t at = offset;
    if constexpr (kWalk == Walk::kMaps) {
      at = sample * g.stride + int64_t{first} * g.hw + int64_t{pack} * V;
      sample += samples_apart;
      pack += packs_apart;
      if (pack >= g.packs) {
        pack -= g.packs;
        ++sample;
      }
    } else {
      offset += g.ty * g.stride;
    }
    return at;
  };

  for (int step = 0; step < steps; step += Op::kDeep) {
    Elements<Op, V> data[Op::kDeep];
    int64_t at[Op::kDeep];
#pragma unroll
    for (int u = 0; u < Op::kDeep; ++u) {
      at[u] = next();
      if (step + u < steps) {
        data[u].load(op, at[u]);
      }
    }
    if (step == 0) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        A v[Op::kInputs];
        data[0].widened(i, v);
        op.begin(slot[i], v);
      }
    }
#pragma unroll
    for (int u = 0; u < Op::kDeep; ++u) {
      if (step + u < steps) {
        const typename Op::Step common = op.step(step + u + 1);
        [[maybe_unused]] Pack<T, V> written;
#pragma unroll
        for (int i = 0; i < V; ++i) {
          A v[Op::kInputs];
          data[u].widened(i, v);
          const A result = op.take(slot[i], v, channel[kHeld == 1 ? 0 : i], common);
          if constexpr (Op::kWrites) {
            written.item[i] = narrow<T>(result);
          }
        }
        if constexpr (Op::kWrites) {
          store(op.written + at[u], written);
        }
      }
    }
  }

  if (mine) {
    Part part[kParts];
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
      part[j] = Part::start(kNone);
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const Part of_slot = op.part(slot[i], steps);
      if constexpr (kWalk == Walk::kSlots) {
        part[i] = of_slot;
      } else if (i < turn) {
        part[0].merge(of_slot);
      } else {
        part[kParts - 1].merge(of_slot);
      }
    }
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
      parts[j * kColumn + threadIdx.x] = part[j];
    }
  }
  __syncthreads();

  const int lane = threadIdx.x & ((1 << g.log_lanes) - 1);
  for (int from = 0; from < group; from += kThreads >> g.log_lanes) {
    const int result = from + (threadIdx.x >> g.log_lanes);
    Part total = Part::start(kNone);
    if (result < group) {
      // The channel's packs, or slots, in a row, and their parts.
      const int left = kWalk == Walk::kMaps   ? 0
                       : kWalk == Walk::kRuns ? result * g.hw / V
                                              : result * g.hw;
      const int across = kWalk == Walk::kMaps   ? kThreads
                         : kWalk == Walk::kRuns ? ((result + 1) * g.hw - 1) / V + 1 - left
                                                : g.hw;
      for (int i = lane; i < across * g.ty; i += 1 << g.log_lanes) {
        const int row = i / across;
        const int place = left + i - row * across;
        const int column = kWalk == Walk::kSlots ? place / V : place;
        const int part = kWalk == Walk::kMaps   ? 0
                         : kWalk == Walk::kRuns ? place * V / g.hw != result
                                                : place % V;
        total.merge(parts[part * kColumn + row * g.tx + column]);
      }
    }
    merge_lanes(total, g.log_lanes);
    if (result < group && lane == 0) {
      const int c = first + result;
      if (partials != nullptr) {
        const int64_t stride = int64_t{g.chunks} * g.c;
        op.keep(total, partials + int64_t{chunk} * g.c + c, stride);
      } else {
        op.finish(total, c);
      }
    }
  }
}

template <typename Op>
__global__ void __launch_bounds__(kThreads)
    finish_batch_kernel(Op op, Batch g, const typename Op::A* __restrict__ partials, int log_lanes) {
  using Whole = typename Op::Whole;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int lane = threadIdx.x & ((1 << log_lanes) - 1);
  const int64_t c = thread >> log_lanes;
  Whole whole = Whole::start(kNone);
  if (c < g.c) {
    for (int chunk = lane; chunk < g.chunks; chunk += 1 << log_lanes) {
      const int64_t rows = min(g.chunk, g.rows - chunk * g.chunk);
      const int64_t at = int64_t{chunk} * g.c + c;
      whole.merge(op.whole(partials + at, int64_t{g.chunks} * g.c, rows * g.per_row));
    }
  }
  merge_lanes(whole, log_lanes);
  if (c < g.c && lane == 0) {
    op.finish(whole, static_cast<int>(c));
  }
}

// ---- launches ---------------------------------------------------------------------------------

template <typename Op, int V, Walk kWalk>
int reduce_batch(const Op& op, const Batch& g, void* workspace, cudaStream_t stream) {
  constexpr int kParts = kWalk == Walk::kMaps ? 1 : kWalk == Walk::kRuns ? 2 : V;
  auto* partials = g.chunks > 1 ? static_cast<typename Op::A*>(workspace) : nullptr;
  using Channel = typename Op::Channel;
  const int64_t channels =
      std::is_empty_v<Channel> ? 0 : ceil_div(int64_t{sizeof(Channel)} * g.group, 16) * 16;
  const int64_t bytes = channels + int64_t{sizeof(typename Op::Part)} * kParts * (kThreads + 1);
  reduce_batch_kernel<Op, V, kWalk><<<g.grid(), kThreads, bytes, stream>>>(
      op, g, static_cast<int>(channels), partials);
  const int error = cudaGetLastError();
  if (error != cudaSuccess || partials == nullptr) {
    return error;
  }
  const int log_lanes = log_lanes_for(ceil_div(g.chunks, 4));
  finish_batch_kernel<Op><<<blocks_for(int64_t{g.c} << log_lanes), kThreads, 0, stream>>>(
      op, g, partials, log_lanes);
  return cudaGetLastError();
}

template <typename Op>
int reduce_batch(
    const Op& op, const FeatureShape& shape, bool packed, void* workspace, void* stream) {
  constexpr int V = kPack<typename Op::T>;
  const auto s = static_cast<cudaStream_t>(stream);
  const Packing packs(shape, V);
  if (packed && packs.fits()) {
    const Batch g = batch_of(packs, V);
    return packs.maps()   ? reduce_batch<Op, V, Walk::kMaps>(op, g, workspace, s)
           : g.hw >= V ? reduce_batch<Op, V, Walk::kRuns>(op, g, workspace, s)
                       : reduce_batch<Op, V, Walk::kSlots>(op, g, workspace, s);
  }
  const Packing elements(shape, 1);
  const Batch g = batch_of(elements, 1);
  return elements.maps() ? reduce_batch<Op, 1, Walk::kMaps>(op, g, workspace, s)
                         : reduce_batch<Op, 1, Walk::kSlots>(op, g, workspace, s);
}

// Enough for packs and for single elements: the pointers decide between them, unknown here.
template <typename Op>
int64_t batch_workspace_of(const FeatureShape& shape) {
  int64_t most = 0;
  for (const int V : {kPack<typename Op::T>, 1}) {
    const Packing packing(shape, V);
    if (packing.fits()) {
      const Batch g = batch_of(packing, V);
      most = std::max(most, g.chunks > 1 ? int64_t{g.chunks} * g.c : 0);
    }
  }
  return most * Op::kPlanes * static_cast<int64_t>(sizeof(typename Op::A));
}

template <template <typename> class Op>
int64_t batch_workspace_of(DType dtype, const FeatureShape& shape) {
  int64_t bytes = 0;
  dispatch(dtype, [&](auto tag) {
    bytes = batch_workspace_of<Op<typename decltype(tag)::type>>(shape);
  });
  return bytes;
}

}  // namespace ran::cuda
