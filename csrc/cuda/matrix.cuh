// How CBAM's kernels see a feature map, and how they cut it into blocks.
//
// In memory a sample is a matrix: C rows of HW columns, or HW rows of C columns with channels_last.
// A kernel that keeps to a column (one position, one channel) walks down the rows and holds what
// belongs to its columns in registers; the threads beside it read the same row, side by side.
//
// Rows whose length is no multiple of a 16-byte pack (49 or 196 positions in bfloat16) start
// unaligned, but every `fold` of them together are a multiple again. Such a band of rows takes the
// place of a row: it is `width` packs long, pack j holds the same columns in every band, and at
// most two rows meet in it.
#pragma once

#include <algorithm>
#include <numeric>

#include "../cbam.h"
#include "kernel.cuh"

namespace ran::cuda {

struct Matrix {
  int64_t n;
  int rows;
  int cols;
};

// Positions and channels fit 32 bits, since the indices of the maxima do, with room for one step of
// a block above them; their products do not.
inline Matrix matrix_of(const FeatureShape& s) {
  const int c = static_cast<int>(s.c);
  const int hw = static_cast<int>(s.hw);
  return s.channels_last ? Matrix{s.n, hw, c} : Matrix{s.n, c, hw};
}

// Rows that start 16 bytes aligned only together, with packs of V elements.
inline int fold_of(const Matrix& m, int V) {
  return V / std::gcd(V, m.cols);
}

// Whether the matrix is whole packs of V, with at most two rows in one.
inline bool packs_in_bands(const Matrix& m, int V) {
  const int fold = fold_of(m, V);
  return fold == 1 || (m.rows % fold == 0 && m.cols >= V);
}

// A block is tx packs across and ty bands down, and walks down the bands of its chunk. blockIdx.x
// counts tiles of tx packs and chunks of bands, blockIdx.y the samples.
struct Columns {
  int fold;
  int bands;
  int width;
  int tx;
  int ty;
  int tiles;
  int chunk;  // bands a block walks
  int chunks;
  int stage;  // bands whose rows' terms lie in shared memory together

  dim3 grid(int64_t n) const {
    return grid_of(int64_t{tiles} * chunks, std::min(n, kMaxGridY));
  }
};

// Tiles of at most `across` packs, and bands in one chunk.
inline Columns tiles_of(const Matrix& m, int V, int64_t across) {
  Columns g{};
  g.fold = fold_of(m, V);
  g.bands = m.rows / g.fold;
  g.width = static_cast<int>(int64_t{m.cols} * g.fold / V);
  g.tiles = static_cast<int>(ceil_div(g.width, across));
  g.tx = static_cast<int>(ceil_div(g.width, g.tiles));
  g.ty = std::min(kThreads / g.tx, g.bands);
  g.chunk = g.bands;
  g.chunks = 1;
  g.stage = g.bands;
  return g;
}

// Cuts the bands into at most `chunks` chunks of whole steps.
inline void cut(Columns& g, int64_t chunks) {
  const int64_t steps = ceil_div(g.bands, g.ty);
  g.chunk = static_cast<int>(ceil_div(steps, std::max<int64_t>(1, chunks)) * g.ty);
  g.chunks = static_cast<int>(ceil_div(g.bands, g.chunk));
}

// For results that need no other block: a chunk has at most the rows that rows(tile) gives for the
// tile that is chosen, where a single step allows it.
template <typename Rows>
Columns mapped_columns_of(const Matrix& m, int V, Rows&& rows) {
  Columns g = tiles_of(m, V, 64);
  for (const int across : {128, 256}) {  // where only wider tiles are few enough for one wave
    if (m.n * g.tiles > kOneWave && m.n * ceil_div(g.width, across) <= kOneWave) {
      g = tiles_of(m, V, across);
    }
  }
  const int64_t steps = ceil_div(g.bands, g.ty);
  const int64_t most = std::max<int64_t>(1, rows(g) / (g.ty * g.fold));
  const int64_t chunks = std::min(steps, pieces_for(m.n * g.tiles));
  cut(g, std::max(chunks, ceil_div(steps, most)));
  return g;
}

// For reductions, where a second chunk is a second launch. Tiles of 32-byte sectors, or long beside
// the one that two of them share, make one wave of blocks or many where they can, else chunks of at
// least eight steps do; the band is one tile where it fits, and its rows are merged with it. A sum
// adds one after another no more than kMostSteps elements.
constexpr int64_t kMostSteps = 512;

inline Columns reduced_columns_of(const Matrix& m, int V) {
  Columns g = tiles_of(m, V, 64);
  if (g.fold > 1) {
    if (g.width <= kThreads) {
      g = tiles_of(m, V, kThreads);
    }
  } else {
    for (const int across : {256, 128, 64, 32, 16, 8}) {
      const Columns tiled = tiles_of(m, V, across);
      const int64_t blocks = m.n * tiled.tiles;
      const bool sectors = tiled.tx % 2 == 0 || tiled.tx > 12;
      const bool one = blocks >= kOneWave / 2 && blocks <= kOneWave;
      if (sectors && (one || blocks >= kManyWaves)) {
        g = tiled;
        break;
      }
    }
  }
  const int64_t steps = ceil_div(g.bands, g.ty);
  const int64_t wave = std::min(steps / 8, kOneWave / (m.n * g.tiles));
  cut(g, std::max(wave, ceil_div(steps, kMostSteps)));
  return g;
}

// Where the elements of a thread's pack lie: the first `turn` are in row `row` of the band, the
// others in the row below.
template <int V, bool kBands>
struct Place {
  int col;  // of the first element
  int row;
  int turn;
  int cols;

  __device__ __forceinline__ Place(int pack, int cols) : cols(cols) {
    if constexpr (kBands) {
      const int64_t slot = static_cast<int64_t>(pack) * V;
      row = static_cast<int>(slot / cols);
      col = static_cast<int>(slot - static_cast<int64_t>(row) * cols);
      turn = cols - col;
    } else {
      row = 0;
      col = pack * V;
      turn = V;
    }
  }
  __device__ __forceinline__ bool below(int i) const {
    return kBands && i >= turn;
  }
  __device__ __forceinline__ int col_of(int i) const {
    return below(i) ? i - turn : col + i;
  }
};

}  // namespace ran::cuda
