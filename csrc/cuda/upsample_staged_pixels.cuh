// The kernels of upsample for channels_last images that are not wide: a tile is a band of rows of an
// image, all its columns, and a strip of channels. What it reads of a row is staged as (column, pack).
#pragma once

#include "upsample_stage.cuh"

namespace ran::cuda {

struct BandTiles {
  int packs;   // of a pixel
  int lanes;   // packs of a strip: 128 bytes of each pixel, or 64 where the image is wider
  int strips;
  int bands;   // of an image
  int rows;    // of the result in a band
  int threads;
  int64_t shared;  // bytes, more than kSharedBytes where the kernel cannot be used

  dim3 blocks(int64_t images) const {
    return blocks_sharing(images * bands * strips, threads);
  }
};

// Source columns that 256 threads have side by side at 128 bytes a pixel, and at 64.
constexpr int kNarrow = 32;
constexpr int kWide = 64;

inline BandTiles strips_of(const UpsampleShape& s, int pack) {
  BandTiles t{};
  t.packs = static_cast<int>(s.channels / pack);
  t.lanes = s.w <= kNarrow ? 8 : 4;
  t.strips = (t.packs + t.lanes - 1) / t.lanes;
  t.threads = kThreads;
  return t;
}

// Bands of about as many rows each; rows that two bands need are read twice.
inline void cut(BandTiles& t, const UpsampleShape& s, int64_t height, int64_t most_rows) {
  t.bands = static_cast<int>((height + most_rows - 1) / most_rows);
  t.rows = static_cast<int>((height + t.bands - 1) / t.bands);
}

// A table of so many Tap<A> ends on a multiple of 16 bytes, of float64's 24 as well.
template <typename Int>
__host__ __device__ __forceinline__ Int even(Int count) {
  return (count + 1) / 2 * 2;
}

// Rows of the result that a band has forwards, unless their sources take too much memory: it needs
// half as many and up to three more.
constexpr int64_t kBandRows = 16;

template <typename A>
BandTiles forward_bands(const UpsampleShape& s, const Axis<A>& height, int pack) {
  BandTiles t = strips_of(s, pack);
  t.shared = kSharedBytes + 1;
  for (int64_t rows = kBandRows; s.w <= kWide && rows >= kBandRows / 4; rows /= 2) {
    cut(t, s, s.height, std::min(rows, s.height));
    const int64_t sources = std::min(s.h, sources_of(height, t.rows));
    t.shared = sources * s.w * t.lanes * 16 + (even(s.width) + even(t.rows)) * sizeof(Tap<A>);
    if (t.shared <= kSharedBytes) {
      break;
    }
  }
  return t;
}

// Target rows whose loads are in flight together.
constexpr int kRowsAtOnce = 4;

template <typename A>
BandTiles backward_bands(const UpsampleShape& s, const Axis<A>& width, int pack) {
  BandTiles t = strips_of(s, pack);
  cut(t, s, s.h, s.h);
  // Where whole images are too few tiles for the multiprocessors, two bands of an image are more.
  if (s.n * t.strips < kResident / 512 && s.h >= 16) {
    cut(t, s, s.h, (s.h + 1) / 2);
  }
  t.threads = static_cast<int>(std::min<int64_t>(kThreads, (s.w * t.lanes + 31) / 32 * 32));
  const bool fits = s.w <= kWide && readers_of(width, 1) <= kReaders;
  t.shared = kRowsAtOnce * s.width * t.lanes * 16 + (s.w + 3) / 4 * 4 * sizeof(Readers<A>);
  t.shared = fits ? t.shared : kSharedBytes + 1;
  return t;
}

struct Band {
  int image;
  int pack;  // the thread's
  int first;  // row
  int rows;

  __device__ __forceinline__ Band(const BandTiles& tiles, int tile, int height) {
    const int across = tile / tiles.strips;
    image = across / tiles.bands;
    first = (across - image * tiles.bands) * tiles.rows;
    rows = min(tiles.rows, height - first);
    pack = (tile - across * tiles.strips) * tiles.lanes +
           static_cast<int>(threadIdx.x) % tiles.lanes;
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads, 4) upsample_staged_pixels_kernel(
    const T* __restrict__ x,
    const T* __restrict__ skip,
    T* __restrict__ out,
    BandTiles tiles,
    int images,
    Axis<accumulate_t<T>> height,
    Axis<accumulate_t<T>> width) {
  using A = accumulate_t<T>;
  constexpr int N = kPack<T>;
  using P = Pack<T, N>;
  extern __shared__ __align__(16) unsigned char shared[];
  Tap<A>* const columns = reinterpret_cast<Tap<A>*>(shared);
  Tap<A>* const rows = columns + even(width.target);
  P* const staged = reinterpret_cast<P*>(rows + even(tiles.rows));
  const int lane = static_cast<int>(threadIdx.x) % tiles.lanes;
  const int place = static_cast<int>(threadIdx.x) / tiles.lanes;
  const int places = kThreads / tiles.lanes;
  for (int c = static_cast<int>(threadIdx.x); c < width.target; c += kThreads) {
    Tap<A> tap = tap_of(width, c);
    tap.first *= tiles.lanes;
    tap.second *= tiles.lanes;
    columns[c] = tap;
  }

  const int all = images * tiles.bands * tiles.strips;
  for (int tile = blockIdx.x; tile < all; tile += gridDim.x) {
    const Band band(tiles, tile, height.target);
    const int top = tap_of(height, band.first).first;
    const int bottom = tap_of(height, band.first + band.rows - 1).second;
    for (int r = static_cast<int>(threadIdx.x); r < band.rows; r += kThreads) {
      Tap<A> tap = tap_of(height, band.first + r);
      tap.first = (tap.first - top) * width.source * tiles.lanes;
      tap.second = (tap.second - top) * width.source * tiles.lanes;
      rows[r] = tap;
    }
    if (band.pack < tiles.packs) {
      const P* from = reinterpret_cast<const P*>(x) +
                      (band.image * height.source + top) * width.source * tiles.packs + band.pack;
      const int pixels = (bottom + 1 - top) * width.source;
#pragma unroll 4
      for (int i = place; i < pixels; i += places) {
        staged[i * tiles.lanes + lane] = from[i * tiles.packs];
      }
    }
    __syncthreads();

    if (band.pack < tiles.packs) {
      const int start =
          (band.image * height.target + band.first) * width.target * tiles.packs + band.pack;
      int r = place / width.target;
      int c = place - r * width.target;
#pragma unroll 2
      for (int i = place; i < band.rows * width.target; i += places) {
        const int offset = start + i * tiles.packs;
        P o;
        if (skip) {
          o = reinterpret_cast<const P*>(skip)[offset];
        }
        const Tap<A> row = rows[r];
        const Tap<A> column = columns[c];
        const P* upper = staged + row.first + lane;
        const P* lower = staged + row.second + lane;
        const P a = upper[column.first];
        const P b = upper[column.second];
        const P d = lower[column.first];
        const P e = lower[column.second];
#pragma unroll
        for (int k = 0; k < N; ++k) {
          const A value = blend(
              row,
              blend(column, widen(a.item[k]), widen(b.item[k])),
              blend(column, widen(d.item[k]), widen(e.item[k])));
          o.item[k] = narrow<T>(skip ? value + widen(o.item[k]) : value);
        }
        store(out + offset * N, o);
        for (c += places; c >= width.target; c -= width.target) {
          ++r;
        }
      }
    }
    __syncthreads();  // before the next tile overwrites what is staged
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 4) upsample_backward_staged_pixels_kernel(
    const T* __restrict__ grad,
    T* __restrict__ grad_x,
    BandTiles tiles,
    int images,
    Axis<accumulate_t<T>> height,
    Axis<accumulate_t<T>> width) {
  using A = accumulate_t<T>;
  constexpr int N = kPack<T>;
  using P = Pack<T, N>;
  extern __shared__ __align__(16) unsigned char shared[];
  Readers<A>* const readers = reinterpret_cast<Readers<A>*>(shared);
  P* const staged = reinterpret_cast<P*>(readers + (width.source + 3) / 4 * 4);
  const int lane = static_cast<int>(threadIdx.x) % tiles.lanes;
  const int column = static_cast<int>(threadIdx.x) / tiles.lanes;
  const int places = static_cast<int>(blockDim.x) / tiles.lanes;
  if (lane == 0 && column < width.source) {
    readers[column] = Readers<A>(width, column);
  }

  const int all = images * tiles.bands * tiles.strips;
  for (int tile = blockIdx.x; tile < all; tile += gridDim.x) {
    const Band band(tiles, tile, height.source);
    const bool present = band.pack < tiles.packs;
    const bool mine = present && column < width.source;  // a column of the result
    const int until = band.first + band.rows;
    const int end = last_reader(height, until - 1);
    const P* from = reinterpret_cast<const P*>(grad) +
                    band.image * height.target * width.target * tiles.packs + band.pack;
    P* to = reinterpret_cast<P*>(grad_x) +
            band.image * height.source * width.source * tiles.packs + band.pack;
    OpenRows<A, N> open(band.first - 1);
    const auto emit = [&](int row, const A(&sum)[N]) {
      if (row >= band.first) {
        Pack<T, N> o;
#pragma unroll
        for (int k = 0; k < N; ++k) {
          o.item[k] = narrow<T>(sum[k]);
        }
        const int at = row * width.source + column;
        store(reinterpret_cast<T*>(to + at * tiles.packs), o);
      }
    };
    for (int first = first_reader(height, band.first); first < end; first += kRowsAtOnce) {
      const int rows = min(kRowsAtOnce, end - first);
      const P* row = from + first * width.target * tiles.packs;
      if (present) {
#pragma unroll 4
        for (int i = column; i < rows * width.target; i += places) {
          staged[i * tiles.lanes + lane] = row[i * tiles.packs];
        }
      }
      __syncthreads();
      for (int i = 0; i < rows && mine; ++i) {
        const Tap<A> tap = tap_of(height, first + i);
        open.close(tap.first, emit);
        A sum[N];
        readers[column].sum(width, staged + i * width.target * tiles.lanes + lane, tiles.lanes, sum);
        open.add(tap, sum);
      }
      __syncthreads();  // before the next rows overwrite these
    }
    if (mine) {
      open.close(until, emit);
    }
  }
}

}  // namespace ran::cuda
