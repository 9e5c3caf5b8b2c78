// One pass over feature maps, each element with what belongs to its channel and to its position.
//
// An operator says what that is:
//
//   T, A                              element and arithmetic types
//   kInputs, in[kInputs], written     tensors read (a null one reads as 0) and written
//   kDeep                             steps whose loads are in flight together
//   Channel, channels(n, c, f[V])     what V neighbouring channels need, loaded
//   Position, positions(n, p, f[V])   what V neighbouring positions need, loaded
//   shift(term, by)                   moves the origin of the index a term compares with
//   value(v, channel, position, c, p) the result for one element
//   kSum, sum, total(v)               with kSum, a second tensor to write and its element
//
// To keep the registers for data, no thread holds the channels and positions of its V elements: c
// or p is an element's place in the pack, and the other the row of the pack's first element.
#pragma once

#include <type_traits>

#include "reduce.cuh"

namespace ran::cuda {

// The shared memory of a block for the terms of the rows it walks, at most, and for all of its terms:
// more than that needs leave.
constexpr int64_t kRowBytes = 28 * 1024;
constexpr int64_t kTermBytes = 48 * 1024;

// What channels or positions need where that is nothing.
struct Nothing {};

// Channels or positions first, first + 1, ..., first + V - 1 of a sample.
template <bool kChannels, typename Op, typename F, int V>
__device__ __forceinline__ void terms(const Op& op, int64_t sample, int first, F (&f)[V]) {
  if constexpr (kChannels) {
    op.channels(sample, first, f);
  } else {
    op.positions(sample, first, f);
  }
}

// The terms of a tile's columns in a block's shared memory, where the threads above each other find
// them. Column V j + i, counted from the tile's first, is at place i * stride + j: threads beside
// each other read neighbours.
struct Staged {
  int columns;
  int stride;

  Staged(const Matrix& m, const Columns& g, int V)
      : columns(std::min(g.tx * V, m.cols)), stride(static_cast<int>(ceil_div(columns, V))) {}

  template <typename Column, int V>
  int64_t bytes() const {
    return ceil_div(static_cast<int64_t>(sizeof(Column)) * stride * V, 16) * 16;
  }
  template <int V>
  __device__ __forceinline__ int at(int column) const {
    return column % V * stride + column / V;
  }
};

template <typename Op, int V, bool kBands, bool kLast>
__global__ void __launch_bounds__(kThreads, 2)
    map_kernel(Op op, Matrix m, Columns g, Staged staged, int rows_at) {
  using T = typename Op::T;
  using A = typename Op::A;
  using Column = std::conditional_t<kLast, typename Op::Channel, typename Op::Position>;
  using Row = std::conditional_t<kLast, typename Op::Position, typename Op::Channel>;
  extern __shared__ __align__(16) unsigned char shared[];
  Column* const columns = reinterpret_cast<Column*>(shared);
  Row* const rows = reinterpret_cast<Row*>(shared + rows_at);
  const int y = threadIdx.x / g.tx;
  const int x = threadIdx.x - y * g.tx;
  const int chunk = blockIdx.x / g.tiles;
  const int pack = (blockIdx.x - chunk * g.tiles) * g.tx + x;
  const bool mine = y < g.ty && pack < g.width;
  const int first = chunk * g.chunk;
  const int bands = min(g.chunk, g.bands - first);
  const int64_t band_size = static_cast<int64_t>(g.width) * V;
  const Place<V, kBands> place(pack, m.cols);
  const int leftmost = Place<V, kBands>(pack - x, m.cols).col;

  for (int64_t sample = blockIdx.y; sample < m.n; sample += gridDim.y) {
#pragma unroll 1
    for (int i = threadIdx.x; i < bands * g.fold; i += kThreads) {
      Row row[1];
      terms<!kLast>(op, sample, first * g.fold + i, row);
      rows[i] = row[0];
    }
    Column column[V];
    if constexpr (kBands) {
#pragma unroll 1
      for (int i = threadIdx.x; i < staged.columns; i += kThreads) {
        const int col = leftmost + i;
        Column one[1];
        terms<kLast>(op, sample, col < m.cols ? col : col - m.cols, one);
        columns[staged.template at<V>(i)] = one[0];
      }
    } else if (mine && y == 0) {
      terms<kLast>(op, sample, place.col, column);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        columns[i * staged.stride + x] = column[i];
      }
    }
    __syncthreads();
    if (mine) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        if constexpr (kBands) {
          const int from = place.col_of(i) - leftmost;
          column[i] = columns[staged.template at<V>(from < 0 ? from + m.cols : from)];
          op.shift(column[i], place.below(i));
        } else {
          column[i] = columns[i * staged.stride + x];
        }
      }
    }

    const int64_t offset =
        (sample * g.bands + first) * band_size + static_cast<int64_t>(pack) * V;
    for (int band = y; mine && band < bands; band += Op::kDeep * g.ty) {
      Elements<Op, V> data[Op::kDeep];
#pragma unroll
      for (int u = 0; u < Op::kDeep; ++u) {
        const int b = band + u * g.ty;
        if (b < bands) {
          data[u].load(op, offset + b * band_size);
        }
      }
#pragma unroll
      for (int u = 0; u < Op::kDeep; ++u) {
        const int b = band + u * g.ty;
        if (b < bands) {
          const int near = b * g.fold + place.row;
          const int at = first * g.fold + near;
          Row row = rows[near];
          Row below = rows[place.below(V - 1) ? near + 1 : near];
          op.shift(row, place.col);
          op.shift(below, -place.turn);
          Pack<T, V> out;
          [[maybe_unused]] Pack<T, V> sum;
#pragma unroll
          for (int i = 0; i < V; ++i) {
            const Row r = place.below(i) ? below : row;
            A v[Op::kInputs];
            data[u].widened(i, v);
            if constexpr (Op::kSum) {
              sum.item[i] = narrow<T>(op.total(v));
            }
            if constexpr (kLast) {
              out.item[i] = narrow<T>(op.value(v, column[i], r, i, at));
            } else {
              out.item[i] = narrow<T>(op.value(v, r, column[i], at, i));
            }
          }
          if constexpr (Op::kSum) {
            store(op.sum + offset + b * band_size, sum);
          }
          store(op.written + offset + b * band_size, out);
        }
      }
    }
    __syncthreads();  // before the next sample overwrites the rows' terms
  }
}

template <typename Op, int V, bool kBands, bool kLast>
int map(const Op& op, const Matrix& m, cudaStream_t stream) {
  using Column = std::conditional_t<kLast, typename Op::Channel, typename Op::Position>;
  using Row = std::conditional_t<kLast, typename Op::Position, typename Op::Channel>;
  const Columns g = mapped_columns_of(m, V, [&](const Columns& tile) {
    const int64_t left = kTermBytes - Staged(m, tile, V).bytes<Column, V>();
    return std::min(kRowBytes, left) / static_cast<int64_t>(sizeof(Row));
  });
  const Staged staged(m, g, V);
  const auto rows_at = static_cast<int>(staged.bytes<Column, V>());
  const size_t bytes = rows_at + sizeof(Row) * g.chunk * g.fold;
  map_kernel<Op, V, kBands, kLast>
      <<<g.grid(m.n), kThreads, bytes, stream>>>(op, m, g, staged, rows_at);
  return cudaGetLastError();
}

template <typename Op, bool kLast>
int map(const Op& op, const Matrix& m, bool packed, cudaStream_t stream) {
  constexpr int V = kPack<typename Op::T>;
  if (packed && m.cols % V == 0) {
    return map<Op, V, false, kLast>(op, m, stream);
  }
  if constexpr (!kLast) {
    if (packed && packs_in_bands(m, V)) {
      return map<Op, V, true, false>(op, m, stream);
    }
  }
  return map<Op, 1, false, kLast>(op, m, stream);
}

template <typename Op>
int map(const Op& op, const FeatureShape& shape, bool packed, void* stream) {
  const Matrix m = matrix_of(shape);
  const auto s = static_cast<cudaStream_t>(stream);
  return shape.channels_last ? map<Op, true>(op, m, packed, s) : map<Op, false>(op, m, packed, s);
}

}  // namespace ran::cuda
