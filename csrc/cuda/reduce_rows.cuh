// Reduces every row of each sample's matrix: the reduced index is the column.
#pragma once

#include "reduce.cuh"

namespace ran::cuda {

// 2^log_lanes neighbouring lanes share R rows. What an element needs of its column (a sigmoid, four
// numbers of the incoming gradient) is loaded once for all R, whose loads are in flight together.
struct Rows {
  int log_lanes;
  bool many;  // R = kRows<Op>, else 1
  int chunk;  // packs of a row that one group reduces
  int chunks;
};

// As many as the registers hold.
template <typename Op>
constexpr int kRows = Op::kInputs == 1 ? 4 : 2;

template <typename Op, int V, int R>
__global__ void __launch_bounds__(kThreads, 2)
    reduce_rows_kernel(Op op, Matrix m, Rows g, Parts parts, typename Op::Acc* partials) {
  using T = typename Op::T;
  using A = typename Op::A;
  using Acc = typename Op::Acc;
  const int lanes = 1 << g.log_lanes;
  const int lane = threadIdx.x & (lanes - 1);
  const int64_t group =
      static_cast<int64_t>(blockIdx.x) * (kThreads >> g.log_lanes) + (threadIdx.x >> g.log_lanes);
  const int64_t row = group * R;
  const int begin = blockIdx.z * g.chunk;
  // A group past the last row stays for the shuffles, with nothing to do.
  const int end = row < m.rows ? begin + min(g.chunk, m.cols / V - begin) : begin;

  for (int64_t sample = blockIdx.y; sample < m.n; sample += gridDim.y) {
    Acc acc[R];
    int64_t offset[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      acc[r] = Acc::start(begin + lane < end ? (begin + lane) * V : kNone);
      // Past the last row the last one is reduced again, and not stored.
      offset[r] = (sample * m.rows + min(row + r, int64_t{m.rows} - 1)) * m.cols;
    }
#pragma unroll(R == 1 ? 4 : 1)
    for (int pack = begin + lane; pack < end; pack += lanes) {
      const int col = pack * V;
      Elements<Op, V> data[R];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        data[r].load(op, offset[r] + col);
      }
      typename Op::Factor factor[V];
      op.factors(sample, col, factor);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        Pack<T, V> written;
#pragma unroll
        for (int i = 0; i < V; ++i) {
          A v[Op::kInputs];
          data[r].widened(i, v);
          written.item[i] = narrow<T>(
              op.take(acc[r], v, factor[i], static_cast<int>(row) + r, col + i));
        }
        if constexpr (Op::kWrites) {
          store(op.written + offset[r] + col, written);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      merge_lanes(acc[r], g.log_lanes);
      if (lane == 0 && row + r < m.rows) {
        const int kept = static_cast<int>(row) + r;
        if (partials != nullptr) {
          partials[parts.at(blockIdx.z, sample, kept)] = acc[r];
        } else {
          op.finish(acc[r], sample, kept);
        }
      }
    }
  }
}

// Rows too short to be cut into packs of their own, whose length is no multiple of a pack. A run of
// them is aligned as a whole: it goes to shared memory in packs, and each row is reduced from
// there, one element after another. A block is a run of one row for every 2^log_lanes threads.
template <typename Op>
__global__ void __launch_bounds__(kThreads)
    reduce_short_rows_kernel(Op op, Matrix m, int log_lanes) {
  using T = typename Op::T;
  using A = typename Op::A;
  using Acc = typename Op::Acc;
  constexpr int V = kPack<T>;
  extern __shared__ __align__(16) unsigned char shared[];
  const int lanes = 1 << log_lanes;
  const int lane = threadIdx.x & (lanes - 1);
  const int run = kThreads >> log_lanes;
  const int mine = threadIdx.x >> log_lanes;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * run;
  const int rows = static_cast<int>(min(int64_t{run}, m.rows - first));
  T* const data = reinterpret_cast<T*>(shared);
  auto* const factors = reinterpret_cast<typename Op::Factor*>(data + Op::kInputs * run * m.cols);

  for (int64_t sample = blockIdx.y; sample < m.n; sample += gridDim.y) {
    const int64_t offset = (sample * m.rows + first) * m.cols;
#pragma unroll
    for (int k = 0; k < Op::kInputs; ++k) {
      if (op.in[k] != nullptr) {
        const auto* from = reinterpret_cast<const Pack<T, V>*>(op.in[k] + offset);
        auto* to = reinterpret_cast<Pack<T, V>*>(data + k * run * m.cols);
#pragma unroll 4
        for (int i = threadIdx.x; i < rows * m.cols / V; i += kThreads) {
          to[i] = from[i];
        }
      }
    }
#pragma unroll 1
    for (int col = threadIdx.x; col < m.cols; col += kThreads) {
      typename Op::Factor factor[1];
      op.factors(sample, col, factor);
      factors[col] = factor[0];
    }
    __syncthreads();
    Acc acc = Acc::start(lane < m.cols ? lane : kNone);
    if (mine < rows) {
#pragma unroll 4
      for (int col = lane; col < m.cols; col += lanes) {
        A v[Op::kInputs];
#pragma unroll
        for (int k = 0; k < Op::kInputs; ++k) {
          v[k] = op.in[k] != nullptr ? widen(data[(k * run + mine) * m.cols + col]) : A(0);
        }
        op.take(acc, v, factors[col], static_cast<int>(first) + mine, col);
      }
    }
    merge_lanes(acc, log_lanes);
    if (lane == 0 && mine < rows) {
      op.finish(acc, sample, static_cast<int>(first) + mine);
    }
    __syncthreads();  // before the next sample overwrites this one
  }
}

// ---- launches ---------------------------------------------------------------------------------

// A lane takes at least four packs of a row where it has as many: with fewer, the shuffles at the
// end would cost as much as the elements.
template <typename Op>
Rows rows_of(const Matrix& m, int V) {
  Rows g{};
  const int64_t packs = m.cols / V;
  g.log_lanes = log_lanes_for(packs / 4);
  const int64_t together = m.n * ceil_div(m.rows, kRows<Op>) << g.log_lanes;
  g.many = V == 1 || together >= kBusyThreads;
  const int64_t threads = g.many ? together : m.n * m.rows << g.log_lanes;
  int64_t chunks = std::min(kBusyThreads / threads, (packs / 8) >> g.log_lanes);
  chunks = std::max<int64_t>(1, std::min(chunks, kMaxGridY));
  g.chunk = static_cast<int>(ceil_div(packs, chunks));
  g.chunks = static_cast<int>(ceil_div(packs, g.chunk));
  return g;
}

inline Parts parts_of(const Matrix& m, const Rows& g) {
  return {g.chunks, 1, m.rows, m.n};
}

// At most 48 bytes of each input for a thread, so that the blocks of a multiprocessor overlap.
constexpr int kShortRowBytes = 32 * 48;

template <typename Op>
bool rows_are_short(const Matrix& m) {
  constexpr int V = kPack<typename Op::T>;
  return m.rows % fold_of(m, V) == 0 && m.cols * sizeof(typename Op::T) <= kShortRowBytes;
}

template <typename Op, int V, int R>
int reduce_rows(
    const Op& op, const Matrix& m, const Rows& g, void* workspace, cudaStream_t stream) {
  const Parts parts = parts_of(m, g);
  auto* partials = parts.needed() ? static_cast<typename Op::Acc*>(workspace) : nullptr;
  const dim3 grid = grid_of(
      ceil_div(ceil_div(m.rows, R), kThreads >> g.log_lanes), std::min(m.n, kMaxGridY), g.chunks);
  reduce_rows_kernel<Op, V, R><<<grid, kThreads, 0, stream>>>(op, m, g, parts, partials);
  const int error = cudaGetLastError();
  return error == cudaSuccess && partials ? finish(op, parts, workspace, stream) : error;
}

template <typename Op>
int reduce_short_rows(const Op& op, const Matrix& m, cudaStream_t stream) {
  using T = typename Op::T;
  const int log_lanes = log_lanes_for(m.cols * sizeof(T) / 24);
  const int run = kThreads >> log_lanes;
  const dim3 grid = grid_of(ceil_div(m.rows, run), std::min(m.n, kMaxGridY));
  const size_t bytes =
      m.cols * (Op::kInputs * run * sizeof(T) + sizeof(typename Op::Factor));
  reduce_short_rows_kernel<Op><<<grid, kThreads, bytes, stream>>>(op, m, log_lanes);
  return cudaGetLastError();
}

template <typename Op>
int reduce_rows(const Op& op, const Matrix& m, bool packed, void* workspace, cudaStream_t stream) {
  constexpr int V = kPack<typename Op::T>;
  if (packed && m.cols % V == 0) {
    const Rows g = rows_of<Op>(m, V);
    return g.many ? reduce_rows<Op, V, kRows<Op>>(op, m, g, workspace, stream)
                  : reduce_rows<Op, V, 1>(op, m, g, workspace, stream);
  }
  if constexpr (!Op::kOverChannels) {
    if (packed && rows_are_short<Op>(m)) {
      return reduce_short_rows(op, m, stream);
    }
  }
  return reduce_rows<Op, 1, kRows<Op>>(op, m, rows_of<Op>(m, 1), workspace, stream);
}

}  // namespace ran::cuda
