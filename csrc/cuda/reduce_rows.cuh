// Reduces every row of each sample's matrix: the reduced index is the column.
#pragma once

#include "reduce.cuh"

namespace ran::cuda {

// 2^log_lanes neighbouring lanes share R rows, whose loads are in flight together, and a block takes
// `steps` times as many as its lanes have. What an element needs of its column (a sigmoid, four
// numbers of the incoming gradient) is loaded once for all of them and lies in shared memory.
struct Rows {
  int log_lanes;
  bool many;  // R = kRows<Op>, else 1
  int chunk;  // packs of a row that one group reduces
  int chunks;
  int steps;
  int blocks;  // of a sample and a chunk
  int stage;   // packs of a chunk whose factors are staged together
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
  using Factor = typename Op::Factor;
  extern __shared__ __align__(16) unsigned char shared[];
  auto* const factors = reinterpret_cast<Factor*>(shared);
  const int lanes = 1 << g.log_lanes;
  const int lane = threadIdx.x & (lanes - 1);
  const int together = (kThreads >> g.log_lanes) * R;
  const int begin = blockIdx.z * g.chunk;
  const int end = begin + min(g.chunk, m.cols / V - begin);

  for (int64_t sample = blockIdx.y; sample < m.n; sample += gridDim.y) {
    for (int step = 0; step < g.steps; ++step) {
      const int64_t first = (static_cast<int64_t>(blockIdx.x) * g.steps + step) * together;
      if (first >= m.rows) {
        break;
      }
      const int64_t row = first + (threadIdx.x >> g.log_lanes) * R;
      Acc acc[R];
      int64_t offset[R];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        acc[r] = Acc::start(begin + lane < end ? (begin + lane) * V : kNone);
        // Past the last row the last one is reduced again, and not stored.
        offset[r] = (sample * m.rows + min(row + r, int64_t{m.rows} - 1)) * m.cols;
      }
#pragma unroll 1
      for (int left = begin, right = begin; left < end; left = right) {
        right += min(g.stage, end - left);
        if constexpr (kStaged<Op>) {
          if (step == 0 || g.stage < end - begin) {
            __syncthreads();  // the factors before these have been read
#pragma unroll 1
            for (int pack = left + threadIdx.x; pack < right; pack += kThreads) {
              Factor factor[V];
              op.factors(sample, pack * V, factor);
#pragma unroll
              for (int i = 0; i < V; ++i) {
                factors[i * g.stage + pack - left] = factor[i];
              }
            }
            __syncthreads();
          }
        }
        // A group past the last row stays for the barriers and shuffles, with nothing to do.
        const int stop = row < m.rows ? right : left;
#pragma unroll(R == 1 ? 4 : 1)
        for (int pack = left + lane; pack < stop; pack += lanes) {
          const int col = pack * V;
          Elements<Op, V> data[R];
#pragma unroll
          for (int r = 0; r < R; ++r) {
            data[r].load(op, offset[r] + col);
          }
          Pack<T, V> written[R];
#pragma unroll
          for (int i = 0; i < V; ++i) {
            Factor factor{};
            if constexpr (kStaged<Op>) {
              factor = factors[i * g.stage + pack - left];
            }
#pragma unroll
            for (int r = 0; r < R; ++r) {
              A v[Op::kInputs];
              data[r].widened(i, v);
              written[r].item[i] =
                  narrow<T>(op.take(acc[r], v, factor, static_cast<int>(row) + r, col + i));
            }
          }
          if constexpr (Op::kWrites) {
#pragma unroll
            for (int r = 0; r < R; ++r) {
              store(op.written + offset[r] + col, written[r]);
            }
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
}

// Rows too short to be cut into packs of their own, whose length is no multiple of a pack. A run of
// them is aligned as a whole: it goes to shared memory in packs, and each row is reduced from
// there, one element after another. A run is one row for every 2^log_lanes threads of a block, which
// takes several of them.
template <typename Op>
__global__ void __launch_bounds__(kThreads, 4)
    reduce_short_rows_kernel(Op op, Matrix m, int log_lanes, int runs) {
  using T = typename Op::T;
  using A = typename Op::A;
  using Acc = typename Op::Acc;
  constexpr int V = kPack<T>;
  extern __shared__ __align__(16) unsigned char shared[];
  const int lanes = 1 << log_lanes;
  const int lane = threadIdx.x & (lanes - 1);
  const int run = kThreads >> log_lanes;
  const int mine = threadIdx.x >> log_lanes;
  T* const data = reinterpret_cast<T*>(shared);
  auto* const factors = reinterpret_cast<typename Op::Factor*>(data + Op::kInputs * run * m.cols);

  for (int64_t sample = blockIdx.y; sample < m.n; sample += gridDim.y) {
#pragma unroll 1
    for (int col = threadIdx.x; kStaged<Op> && col < m.cols; col += kThreads) {
      typename Op::Factor factor[1];
      op.factors(sample, col, factor);
      factors[col] = factor[0];
    }
    for (int step = 0; step < runs; ++step) {
      const unsigned first = (blockIdx.x * runs + step) * run;  // at most a block above the rows
      if (first >= m.rows) {
        break;
      }
      const int rows = min(run, m.rows - static_cast<int>(first));
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
          typename Op::Factor factor{};
          if constexpr (kStaged<Op>) {
            factor = factors[col];
          }
          op.take(acc, v, factor, static_cast<int>(first) + mine, col);
        }
      }
      merge_lanes(acc, log_lanes);
      if (lane == 0 && mine < rows) {
        op.finish(acc, sample, static_cast<int>(first) + mine);
      }
      __syncthreads();  // before the next run or sample overwrites this one
    }
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

  const int64_t steps = ceil_div(m.rows, (kThreads >> g.log_lanes) * (g.many ? kRows<Op> : 1));
  g.steps = static_cast<int>(ceil_div(steps, std::min(steps, pieces_for(m.n * g.chunks))));
  g.blocks = static_cast<int>(ceil_div(steps, g.steps));
  return g;
}

// The most bytes of factors that a block stages: for rows whose factors need no more, they are loaded
// once, and two blocks still share a multiprocessor.
constexpr int64_t kStageBytes = 64 * 1024;
constexpr int64_t kGivenBytes = 48 * 1024;  // without asking

// The packs of a chunk in as many equal stages as `bytes` make necessary, of whole warps.
inline int stage_of(int chunk, int64_t bytes_of_pack, int64_t bytes) {
  const int64_t stages = ceil_div(chunk, bytes / bytes_of_pack / 32 * 32);
  return static_cast<int>(stages == 1 ? chunk : ceil_div(ceil_div(chunk, stages), 32) * 32);
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
int reduce_rows(const Op& op, const Matrix& m, Rows g, void* workspace, cudaStream_t stream) {
  const Parts parts = parts_of(m, g);
  auto* partials = parts.needed() ? static_cast<typename Op::Acc*>(workspace) : nullptr;
  const dim3 grid = grid_of(g.blocks, std::min(m.n, kMaxGridY), g.chunks);
  g.stage = g.chunk;
  int64_t bytes = 0;
  if constexpr (kStaged<Op>) {
    constexpr int64_t kPackBytes = sizeof(typename Op::Factor) * V;
    g.stage = stage_of(g.chunk, kPackBytes, kStageBytes);
    if (g.stage * kPackBytes > kGivenBytes &&
        !allow_shared(reduce_rows_kernel<Op, V, R>, kStageBytes)) {
      g.stage = stage_of(g.chunk, kPackBytes, kGivenBytes);
    }
    bytes = g.stage * kPackBytes;
  }
  reduce_rows_kernel<Op, V, R><<<grid, kThreads, bytes, stream>>>(op, m, g, parts, partials);
  const int error = cudaGetLastError();
  return error == cudaSuccess && partials ? finish(op, parts, workspace, stream) : error;
}

template <typename Op>
int reduce_short_rows(const Op& op, const Matrix& m, cudaStream_t stream) {
  using T = typename Op::T;
  const int log_lanes = log_lanes_for(m.cols * sizeof(T) / 24);
  const int run = kThreads >> log_lanes;
  // Six blocks share a multiprocessor.
  const int64_t steps = ceil_div(m.rows, run);
  const int64_t blocks = std::max<int64_t>(1, std::min(steps, 3 * kOneWave / m.n));
  const auto runs = static_cast<int>(ceil_div(steps, blocks));
  const dim3 grid = grid_of(ceil_div(steps, runs), std::min(m.n, kMaxGridY));
  const size_t bytes =
      m.cols * (Op::kInputs * run * sizeof(T) + sizeof(typename Op::Factor));
  reduce_short_rows_kernel<Op><<<grid, kThreads, bytes, stream>>>(op, m, log_lanes, runs);
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
