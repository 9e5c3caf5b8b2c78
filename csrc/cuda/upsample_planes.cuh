// The kernels of upsample for contiguous images: a thread keeps its place within the plane.
#pragma once

#include "../common/bilinear.h"
#include "../upsample.h"
#include "kernel.cuh"

namespace ran::cuda {

// Planes are alike, so a thread works out its taps once and uses them in this many planes.
constexpr int kPlanes = 4;

// The planes are dealt out to `groups` of threads: plane p belongs to group p % groups. At each step
// of their loops the threads of a warp therefore touch neighbouring memory.
struct PlaneGroups {
  int64_t planes;
  int64_t groups;

  explicit PlaneGroups(const UpsampleShape& s)
      : planes(s.n * s.channels), groups((planes + kPlanes - 1) / kPlanes) {}
};

template <typename T, int N>
__global__ void __launch_bounds__(kThreads) upsample_planes_kernel(
    const T* __restrict__ x,
    const T* __restrict__ skip,
    T* __restrict__ out,
    PlaneGroups split,
    Axis<accumulate_t<T>> height,
    Axis<accumulate_t<T>> width) {
  using A = accumulate_t<T>;
  using P = Pack<T, N>;
  const int64_t source_plane = static_cast<int64_t>(height.source) * width.source;
  const int64_t target_plane = static_cast<int64_t>(height.target) * width.target;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  int64_t plane = thread / (target_plane / N);
  if (plane >= split.groups) {
    return;
  }
  const int64_t position = thread % (target_plane / N) * N;
  const Tap<A> row = tap_of(height, static_cast<int>(position / width.target));
  Tap<A> column[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    column[i] = tap_of(width, static_cast<int>(position % width.target) + i);
  }
  // A wide pack has enough loads in flight; unrolled as well, it would take too many registers.
#pragma unroll(N > 4 ? 1 : 2)
  for (; plane < split.planes; plane += split.groups) {
    const T* upper = x + plane * source_plane + static_cast<int64_t>(row.first) * width.source;
    const T* lower = x + plane * source_plane + static_cast<int64_t>(row.second) * width.source;
    const int64_t offset = plane * target_plane + position;
    P o;
    if (skip) {
      o = *reinterpret_cast<const P*>(skip + offset);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const Tap<A>& c = column[i];
      const A value = blend(
          row,
          blend(c, widen(upper[c.first]), widen(upper[c.second])),
          blend(c, widen(lower[c.first]), widen(lower[c.second])));
      o.item[i] = narrow<T>(skip ? value + widen(o.item[i]) : value);
    }
    *reinterpret_cast<P*>(out + offset) = o;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) upsample_backward_planes_kernel(
    const T* __restrict__ grad,
    T* __restrict__ grad_x,
    PlaneGroups split,
    Axis<accumulate_t<T>> height,
    Axis<accumulate_t<T>> width) {
  using A = accumulate_t<T>;
  const int64_t source_plane = static_cast<int64_t>(height.source) * width.source;
  const int64_t target_plane = static_cast<int64_t>(height.target) * width.target;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t position = thread % source_plane;
  const int64_t plane = thread / source_plane;
  if (plane >= split.groups) {
    return;
  }
  const int y = static_cast<int>(position / width.source);
  const int x = static_cast<int>(position % width.source);
  const int left = reaching(width, x - 1);
  const int right = reaching(width, x + 1);
  const int bottom = reaching(height, y + 1);
  const T* targets[kPlanes];
#pragma unroll
  for (int k = 0; k < kPlanes; ++k) {
    // Past the last plane the last one is read once more, and not stored.
    const int64_t p = plane + k * split.groups;
    targets[k] = grad + (p < split.planes ? p : split.planes - 1) * target_plane;
  }
  A sum[kPlanes] = {};
  for (int i = reaching(height, y - 1); i < bottom; ++i) {
    A row_sum[kPlanes] = {};
    for (int j = left; j < right; ++j) {
      const Tap<A> column = tap_of(width, j);
      const int64_t offset = static_cast<int64_t>(i) * width.target + j;
#pragma unroll
      for (int k = 0; k < kPlanes; ++k) {
        add_target(row_sum[k], widen(targets[k][offset]), column, x);
      }
    }
    const Tap<A> row = tap_of(height, i);
#pragma unroll
    for (int k = 0; k < kPlanes; ++k) {
      add_target(sum[k], row_sum[k], row, y);
    }
  }
#pragma unroll
  for (int k = 0; k < kPlanes; ++k) {
    const int64_t p = plane + k * split.groups;
    if (p < split.planes) {
      grad_x[p * source_plane + position] = narrow<T>(sum[k]);
    }
  }
}

}  // namespace ran::cuda
