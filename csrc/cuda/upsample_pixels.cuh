// The kernels of upsample for channels_last images: a block is a tile of columns and channels.
#pragma once

#include "../common/bilinear.h"
#include "../upsample.h"
#include "kernel.cuh"

namespace ran::cuda {

// Rows that a block walks down: neighbouring rows read the same memory, which is in L1 by then.
constexpr int kTileRows = 4;
constexpr int kTileColumns = 8;

struct PixelTiles {
  int lanes;  // threads side by side along the channels, each with one pack
  int64_t along_channels;
  int64_t along_width;
  int64_t along_height;
  int64_t blocks;

  PixelTiles(int64_t n, int64_t height, int64_t width, int64_t packs) : lanes(kThreads) {
    // Columns to share what they read, as far as there are any, then channels; both powers of two.
    while (kThreads / lanes < kTileColumns && kThreads / lanes < width) {
      lanes /= 2;
    }
    while (lanes / 2 >= packs) {
      lanes /= 2;
    }
    const int columns = kThreads / lanes;
    along_channels = ceil_div(packs, lanes);
    along_width = ceil_div(width, columns);
    along_height = ceil_div(height, kTileRows);
    blocks = n * along_height * along_width * along_channels;
  }
};

// Where a thread begins; `pack` counts along the channels.
struct Pixel {
  int64_t image;
  int64_t pack;
  int row;
  int column;
};

__device__ __forceinline__ Pixel pixel_of_thread(const PixelTiles& tiles) {
  const auto along_channels = static_cast<unsigned>(tiles.along_channels);
  const auto along_width = static_cast<unsigned>(tiles.along_width);
  const auto along_height = static_cast<unsigned>(tiles.along_height);
  const unsigned across = blockIdx.x / along_channels;
  const unsigned down = across / along_width;
  Pixel at;
  at.pack = static_cast<int64_t>(blockIdx.x % along_channels) * tiles.lanes +
            threadIdx.x % tiles.lanes;
  at.column = static_cast<int>(across % along_width) * (kThreads / tiles.lanes) +
              static_cast<int>(threadIdx.x) / tiles.lanes;
  at.row = static_cast<int>(down % along_height) * kTileRows;
  at.image = down / along_height;
  return at;
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads) upsample_pixels_kernel(
    const T* __restrict__ x,
    const T* __restrict__ skip,
    T* __restrict__ out,
    int64_t packs,
    PixelTiles tiles,
    Axis<accumulate_t<T>> height,
    Axis<accumulate_t<T>> width) {
  using A = accumulate_t<T>;
  using P = Pack<T, N>;
  const Pixel at = pixel_of_thread(tiles);
  if (at.pack >= packs || at.column >= width.target) {
    return;
  }
  const P* image = reinterpret_cast<const P*>(x) +
                   at.image * height.source * width.source * packs + at.pack;
  const Tap<A> column = tap_of(width, at.column);
#pragma unroll
  for (int r = 0; r < kTileRows; ++r) {
    const int y = at.row + r;
    if (y < height.target) {
      const Tap<A> row = tap_of(height, y);
      const int64_t upper = static_cast<int64_t>(row.first) * width.source;
      const int64_t lower = static_cast<int64_t>(row.second) * width.source;
      const P a = image[(upper + column.first) * packs];
      const P b = image[(upper + column.second) * packs];
      const P c = image[(lower + column.first) * packs];
      const P d = image[(lower + column.second) * packs];
      const int64_t offset =
          ((at.image * height.target + y) * width.target + at.column) * packs + at.pack;
      P o;
      if (skip) {
        o = reinterpret_cast<const P*>(skip)[offset];
      }
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const A value = blend(
            row,
            blend(column, widen(a.item[i]), widen(b.item[i])),
            blend(column, widen(c.item[i]), widen(d.item[i])));
        o.item[i] = narrow<T>(skip ? value + widen(o.item[i]) : value);
      }
      reinterpret_cast<P*>(out)[offset] = o;
    }
  }
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads) upsample_backward_pixels_kernel(
    const T* __restrict__ grad,
    T* __restrict__ grad_x,
    int64_t packs,
    PixelTiles tiles,
    Axis<accumulate_t<T>> height,
    Axis<accumulate_t<T>> width) {
  using A = accumulate_t<T>;
  using P = Pack<T, N>;
  const Pixel at = pixel_of_thread(tiles);
  if (at.pack >= packs || at.column >= width.source) {
    return;
  }
  const P* image = reinterpret_cast<const P*>(grad) +
                   at.image * height.target * width.target * packs + at.pack;
  const int left = reaching(width, at.column - 1);
  const int right = reaching(width, at.column + 1);
  const int last = at.row + kTileRows < height.source ? at.row + kTileRows : height.source;
  for (int y = at.row; y < last; ++y) {
    const int bottom = reaching(height, y + 1);
    A sum[N] = {};
    for (int i = reaching(height, y - 1); i < bottom; ++i) {
      A row_sum[N] = {};
      for (int j = left; j < right; ++j) {
        const Tap<A> column = tap_of(width, j);
        const P g = image[(static_cast<int64_t>(i) * width.target + j) * packs];
#pragma unroll
        for (int k = 0; k < N; ++k) {
          add_target(row_sum[k], widen(g.item[k]), column, at.column);
        }
      }
      const Tap<A> row = tap_of(height, i);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        add_target(sum[k], row_sum[k], row, y);
      }
    }
    P o;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      o.item[k] = narrow<T>(sum[k]);
    }
    const int64_t offset =
        ((at.image * height.source + y) * width.source + at.column) * packs + at.pack;
    reinterpret_cast<P*>(grad_x)[offset] = o;
  }
}

}  // namespace ran::cuda
