// The kernels of upsample for contiguous images whose rows are short: a tile is a run of the result,
// across rows and planes, that begins on a multiple of 16 bytes. What it reads is a run of memory too.
#pragma once

#include "upsample_stage.cuh"

namespace ran::cuda {

// One pack of the result for each thread.
template <typename T>
constexpr int kRun = kThreads * kPack<T>;

// Rows of the result that a run of it may touch, and rows of the operand that it may need.
struct RunRows {
  int result;
  int operand;

  // The planes of the result have `height` rows of `width`, those of the operand `operand_height`.
  // needed(r) bounds what r neighbouring rows of a plane need of the operand.
  template <typename Needed>
  RunRows(int64_t height, int64_t width, int64_t operand_height, int run, Needed&& needed) {
    const int64_t rows = (run + width - 2) / width + 1;
    const int64_t touched = (rows + height - 2) / height + 1;  // planes
    int64_t most = touched * operand_height;
    if (operand_height <= height && rows <= height) {
      // A run in two planes, which are bounded one by one. An enlarged plane is read to its end.
      most = std::min(most, needed(rows) + needed(1));
    } else if (operand_height > height && height > 1) {
      most = std::min(most, touched * needed(1) + needed(rows));
    }
    // Whole packs of whatever a table holds.
    result = static_cast<int>((rows + 3) / 4 * 4);
    operand = static_cast<int>((std::min(most, kSharedBytes) + 3) / 4 * 4);
  }
};

struct RunTiles {
  int planes;
  int elements;
  int tiles;
  RunRows rows;

  RunTiles(int64_t planes, int64_t height, int64_t width, int run, const RunRows& rows)
      : planes(static_cast<int>(planes)),
        elements(static_cast<int>(planes * height * width)),
        tiles((elements + run - 1) / run),
        rows(rows) {}
};

// Where a tile lies: `count` elements from `first` on, in `rows` rows of which the first is row `y` of
// `plane` and loses its first `start` elements to the tile before.
struct Run {
  int first;
  int count;
  int start;
  int rows;
  int plane;
  int y;

  __device__ __forceinline__ Run(int tile, int run, int elements, int height, int width)
      : first(tile * run), count(min(run, elements - first)) {
    const int row = first / width;
    start = first - row * width;
    rows = (start + count - 1) / width + 1;
    plane = row / height;
    y = row - plane * height;
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads, 4) upsample_staged_planes_kernel(
    const T* __restrict__ x,
    const T* __restrict__ skip,
    T* __restrict__ out,
    RunTiles tiles,
    Axis<accumulate_t<T>> height,
    Axis<accumulate_t<T>> width) {
  using A = accumulate_t<T>;
  constexpr int N = kPack<T>;
  extern __shared__ __align__(16) unsigned char shared[];
  A* const results = reinterpret_cast<A*>(shared);
  Tap<A>* const taps = reinterpret_cast<Tap<A>*>(results + kRun<T>);
  T* const staged = reinterpret_cast<T*>(taps + tiles.rows.result);
  const int source_plane = height.source * width.source;
  // Threads stand side by side along a row and keep their columns.
  const int lanes = min(width.target, kThreads);
  const int lane_rows = kThreads / lanes;
  const int lane_row = static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) - lane_row * lanes;

  for (int tile = blockIdx.x; tile < tiles.tiles; tile += gridDim.x) {
    const Run run(tile, kRun<T>, tiles.elements, height.target, width.target);
    const int mine = static_cast<int>(threadIdx.x) * N;
    Pack<T, N> o;
    if (skip && mine + N <= run.count) {
      o = *reinterpret_cast<const Pack<T, N>*>(skip + run.first + mine);
    }
    // From the first source row of the first row to the last one of the last.
    const int last = (run.y + run.rows - 1) / height.target;
    const int top = tap_of(height, run.y).first;
    const int bottom = tap_of(height, run.y + run.rows - 1 - last * height.target).second;
    const int begin = run.plane * source_plane + top * width.source;
    const int count = (last * height.source + bottom + 1 - top) * width.source;
    const int shift = begin % N;
    stage(x + begin - shift, tiles.planes * source_plane - begin + shift, shift + count, staged);
    for (int r = static_cast<int>(threadIdx.x); r < run.rows; r += kThreads) {
      const int plane = (run.y + r) / height.target;
      Tap<A> tap = tap_of(height, run.y + r - plane * height.target);
      const int rows = plane * height.source - top;
      tap.first = shift + (rows + tap.first) * width.source;
      tap.second = shift + (rows + tap.second) * width.source;
      taps[r] = tap;
    }
    __syncthreads();

    for (int c = lane; c < width.target && lane_row < lane_rows; c += kThreads) {
      const Tap<A> column = tap_of(width, c);
#pragma unroll 2
      for (int r = lane_row; r < run.rows; r += lane_rows) {
        const int i = r * width.target + c - run.start;
        if (0 <= i && i < run.count) {
          const Tap<A> row = taps[r];
          const T* upper = staged + row.first;
          const T* lower = staged + row.second;
          results[i] = blend(
              row,
              blend(column, widen(upper[column.first]), widen(upper[column.second])),
              blend(column, widen(lower[column.first]), widen(lower[column.second])));
        }
      }
    }
    __syncthreads();

    if (mine + N <= run.count) {
      A values[N];
      load(results + mine, values);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        o.item[i] = narrow<T>(skip ? values[i] + widen(o.item[i]) : values[i]);
      }
      store(out + run.first + mine, o);
    } else {
      for (int i = mine; i < run.count; ++i) {
        const int at = run.first + i;
        out[at] = narrow<T>(skip ? results[i] + widen(skip[at]) : results[i]);
      }
    }
  }
}

// Pairs of registers for float64, so fewer threads.
template <typename T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 3 : 4)
    upsample_backward_staged_planes_kernel(
    const T* __restrict__ grad,
    T* __restrict__ grad_x,
    RunTiles tiles,
    Axis<accumulate_t<T>> height,
    Axis<accumulate_t<T>> width) {
  using A = accumulate_t<T>;
  constexpr int N = kPack<T>;
  extern __shared__ __align__(16) unsigned char shared[];
  A* const results = reinterpret_cast<A*>(shared);
  Tap<A>* const taps = reinterpret_cast<Tap<A>*>(results + kRun<T>);  // of target rows
  int* const firsts = reinterpret_cast<int*>(taps + tiles.rows.operand);  // readers of result rows
  T* const staged = reinterpret_cast<T*>(firsts + tiles.rows.result);
  const int target_plane = height.target * width.target;
  const int lane_rows = kThreads / width.source;
  const int lane_row = static_cast<int>(threadIdx.x) / width.source;
  const int column = static_cast<int>(threadIdx.x) - lane_row * width.source;
  const Readers<A> readers(width, column);

  for (int tile = blockIdx.x; tile < tiles.tiles; tile += gridDim.x) {
    const Run run(tile, kRun<T>, tiles.elements, height.source, width.source);
    const int last = (run.y + run.rows - 1) / height.source;
    const int top = first_reader(height, run.y);
    const int bottom = last_reader(height, run.y + run.rows - 1 - last * height.source);
    const int begin = run.plane * target_plane + top * width.target;
    const int targets = last * height.target + bottom - top;
    const int shift = begin % N;
    stage(
        grad + begin - shift,
        tiles.planes * target_plane - begin + shift,
        shift + targets * width.target,
        staged);
    // From here on rows count from the first one of the tile.
    for (int i = static_cast<int>(threadIdx.x); i < targets; i += kThreads) {
      const int plane = (top + i) / height.target;
      Tap<A> tap = tap_of(height, top + i - plane * height.target);
      tap.first += plane * height.source - run.y;
      tap.second += plane * height.source - run.y;
      taps[i] = tap;
    }
    for (int r = static_cast<int>(threadIdx.x); r < run.rows; r += kThreads) {
      const int plane = (run.y + r) / height.source;
      firsts[r] = plane * height.target - top +
                  first_reader(height, run.y + r - plane * height.source);
    }
    __syncthreads();

    const int share = (run.rows + lane_rows - 1) / lane_rows;
    const int from = lane_row * share;
    const int until = min(from + share, run.rows);
    if (lane_row < lane_rows && from < until) {
      OpenRows<A, 1> open(from - 1);
      const auto emit = [&](int r, const A(&sum)[1]) {
        const int i = r * width.source + column - run.start;
        if (r >= from && 0 <= i && i < run.count) {
          results[i] = sum[0];
        }
      };
      for (int i = firsts[from]; i < targets; ++i) {
        const Tap<A> row = taps[i];
        if (row.first >= until) {
          break;
        }
        open.close(row.first, emit);
        A sum[1];
        readers.sum(
            width,
            reinterpret_cast<const Pack<T, 1>*>(staged + shift + i * width.target),
            1,
            sum);
        open.add(row, sum);
      }
      open.close(until, emit);
    }
    __syncthreads();

    const int mine = static_cast<int>(threadIdx.x) * N;
    if (mine + N <= run.count) {
      A values[N];
      load(results + mine, values);
      Pack<T, N> o;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        o.item[i] = narrow<T>(values[i]);
      }
      store(grad_x + run.first + mine, o);
    } else {
      for (int i = mine; i < run.count; ++i) {
        grad_x[run.first + i] = narrow<T>(results[i]);
      }
    }
  }
}

}  // namespace ran::cuda
