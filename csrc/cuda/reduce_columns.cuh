// Reduces every column of each sample's matrix: the reduced index is the row.
#pragma once

#include "reduce.cuh"

namespace ran::cuda {

// Steps whose loads are in flight together, and blocks that share a multiprocessor's registers.
template <typename Op>
constexpr int kDeep = Op::kInputs == 1 ? 4 : 2;
template <typename Op>
constexpr int kColumnBlocks = Op::kInputs == 1 && sizeof(typename Op::T) == 4 ? 3 : 2;

// The shared memory of a block: the accumulators of ty threads for each of the V elements of tx
// packs. With `stride` an odd multiple of 4, threads beside each other neither write nor, eight
// elements of four packs at a time, read the same bank; where a warp is several rows of threads,
// they are about tx banks apart.
struct Merge {
  int stride;
  int log_lanes;  // that merge one result
  bool whole;     // the block holds whole bands and merges their rows, too
};

template <typename Op, int V, bool kBands>
__global__ void __launch_bounds__(kThreads, kColumnBlocks<Op>) reduce_columns_kernel(
    Op op, Matrix m, Columns g, Merge merge, Parts parts, typename Op::Acc* partials) {
  using T = typename Op::T;
  using A = typename Op::A;
  using Acc = typename Op::Acc;
  using Factor = typename Op::Factor;
  extern __shared__ __align__(16) unsigned char shared[];
  Factor* const factors = reinterpret_cast<Factor*>(shared);  // of a stage's rows
  Acc* const accs = reinterpret_cast<Acc*>(shared);           // when the rows have been read
  const int y = threadIdx.x / g.tx;
  const int x = threadIdx.x - y * g.tx;
  const int chunk = blockIdx.x / g.tiles;
  const int tile = blockIdx.x - chunk * g.tiles;
  const int pack = tile * g.tx + x;
  const bool mine = y < g.ty && pack < g.width;
  const int top = chunk * g.chunk;
  const int end = top + min(g.chunk, g.bands - top);
  const int64_t band_size = static_cast<int64_t>(g.width) * V;
  const Place<V, kBands> place(pack, m.cols);

  for (int64_t sample = blockIdx.y; sample < m.n; sample += gridDim.y) {
    const int64_t offset = sample * g.bands * band_size + static_cast<int64_t>(pack) * V;
    Acc acc[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const bool some = mine && top + y < end;
      acc[i] = Acc::start(some ? (top + y) * g.fold + place.row + place.below(i) : kNone);
    }
#pragma unroll 1
    for (int first = top, last = top; first < end; first = last) {
      last += min(g.stage, end - first);
      if constexpr (kStaged<Op>) {
#pragma unroll 1
        for (int i = threadIdx.x; i < (last - first) * g.fold; i += kThreads) {
          Factor factor[1];
          op.factors(sample, first * g.fold + i, factor);
          factors[i] = factor[0];
        }
        __syncthreads();
      }
      for (int band = first + y; mine && band < last; band += kDeep<Op> * g.ty) {
        Elements<Op, V> data[kDeep<Op>];
#pragma unroll
        for (int u = 0; u < kDeep<Op>; ++u) {
          const int b = band + u * g.ty;
          if (b < last) {
            data[u].load(op, offset + b * band_size);
          }
        }
#pragma unroll
        for (int u = 0; u < kDeep<Op>; ++u) {
          const int b = band + u * g.ty;
          if (b < last) {
            Factor factor{};
            Factor below{};
            if constexpr (kStaged<Op>) {
              const int near = (b - first) * g.fold + place.row;
              factor = factors[near];
              below = factors[place.below(V - 1) ? near + 1 : near];
            }
            Pack<T, V> written;
#pragma unroll
            for (int i = 0; i < V; ++i) {
              const bool next = place.below(i);
              const Factor f = next ? below : factor;
              A v[Op::kInputs];
              data[u].widened(i, v);
              written.item[i] = narrow<T>(
                  op.take(acc[i], v, f, place.col_of(i), b * g.fold + place.row + next));
            }
            if constexpr (Op::kWrites) {
              store(op.written + offset + b * band_size, written);
            }
          }
        }
      }
      if constexpr (kStaged<Op>) {
        __syncthreads();  // the factors have been read
      }
    }
    if (mine) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        accs[(y * V + i) * merge.stride + x] = acc[i];
      }
    }
    __syncthreads();

    // A slot is an element of the tile. Without whole bands each is a result, or a part of one.
    const int slots = min(g.tx, g.width - tile * g.tx) * V;
    const int results = merge.whole ? m.cols : slots;
    const int rows = merge.whole ? g.fold : 1;
    const int lane = threadIdx.x & ((1 << merge.log_lanes) - 1);
    for (int first = 0; first < results; first += kThreads >> merge.log_lanes) {
      const int result = first + (threadIdx.x >> merge.log_lanes);
      Acc total = Acc::start(kNone);
      if (result < results) {
        for (int part = lane; part < g.ty * rows; part += 1 << merge.log_lanes) {
          const int from = part / rows;
          const int slot = result + (part - from * rows) * m.cols;
          total.merge(accs[(from * V + slot % V) * merge.stride + slot / V]);
        }
      }
      merge_lanes(total, merge.log_lanes);
      if (result < results && lane == 0) {
        const int64_t slot = static_cast<int64_t>(tile) * g.tx * V + result;
        if (partials != nullptr) {
          partials[parts.at(chunk, sample, slot)] = total;
        } else {
          op.finish(total, sample, static_cast<int>(slot));
        }
      }
    }
    __syncthreads();  // before the next sample overwrites this one
  }
}

// ---- launches ---------------------------------------------------------------------------------

// The shared memory of a block for the factors of a stage's rows, where a step of its threads allows
// it.
constexpr int64_t kFactorBytes = 28 * 1024;

// Whole steps, so that a thread's rows are as far apart between stages as within.
template <typename Op>
int stage_of(const Columns& g) {
  const int64_t step = int64_t{g.ty} * kDeep<Op>;
  const auto bytes = static_cast<int64_t>(sizeof(typename Op::Factor)) * g.fold * step;
  const int64_t steps = kStaged<Op> ? std::max<int64_t>(1, kFactorBytes / bytes) : g.chunk;
  return static_cast<int>(std::min<int64_t>(g.chunk, steps * step));
}

// At most twice tx, so that a block's accumulators take no more than 48 KB.
inline int stride_of(int tx, int V) {
  if (tx < 16) {
    const int period = 32 / V;
    const int stride = tx + (static_cast<int>(ceil_div(tx, V)) - tx % period + period) % period;
    return stride <= 2 * tx ? stride : tx;
  }
  return tx + (12 - tx % 8) % 8;
}

inline Parts parts_of(const Matrix& m, const Columns& g) {
  return {g.chunks, g.tiles == 1 ? 1 : g.fold, m.cols, m.n};
}

template <typename Op, int V, bool kBands>
int reduce_columns(const Op& op, const Matrix& m, void* workspace, cudaStream_t stream) {
  using Acc = typename Op::Acc;
  Columns g = reduced_columns_of(m, V);
  g.stage = stage_of<Op>(g);
  const Parts parts = parts_of(m, g);
  auto* partials = parts.needed() ? static_cast<Acc*>(workspace) : nullptr;
  Merge merge{};
  merge.stride = stride_of(g.tx, V);
  merge.whole = kBands && g.tiles == 1;
  merge.log_lanes = log_lanes_for(kThreads / (merge.whole ? m.cols : g.tx * V));
  const size_t accs = sizeof(Acc) * g.ty * V * merge.stride;
  const size_t factors = kStaged<Op> ? sizeof(typename Op::Factor) * g.stage * g.fold : 0;
  const size_t bytes = std::max(accs, factors);
  reduce_columns_kernel<Op, V, kBands>
      <<<g.grid(m.n), kThreads, bytes, stream>>>(op, m, g, merge, parts, partials);
  const int error = cudaGetLastError();
  return error == cudaSuccess && partials ? finish(op, parts, workspace, stream) : error;
}

template <typename Op>
int reduce_columns(
    const Op& op, const Matrix& m, bool packed, void* workspace, cudaStream_t stream) {
  constexpr int V = kPack<typename Op::T>;
  if (packed && m.cols % V == 0) {
    return reduce_columns<Op, V, false>(op, m, workspace, stream);
  }
  if constexpr (Op::kOverChannels) {
    if (packed && packs_in_bands(m, V)) {
      return reduce_columns<Op, V, true>(op, m, workspace, stream);
    }
  }
  return reduce_columns<Op, 1, false>(op, m, workspace, stream);
}

}  // namespace ran::cuda
