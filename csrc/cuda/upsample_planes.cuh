// The kernels of upsample for any contiguous images: a thread for each element of the result.
#pragma once

#include "upsample_stage.cuh"

namespace ran::cuda {

template <typename T>
__global__ void __launch_bounds__(kThreads) upsample_planes_kernel(
    const T* __restrict__ x,
    const T* __restrict__ skip,
    T* __restrict__ out,
    int64_t planes,
    Axis<accumulate_t<T>> height,
    Axis<accumulate_t<T>> width) {
  using A = accumulate_t<T>;
  const int64_t count = planes * height.target * width.target;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t line = divide(i, width.target);
    const int64_t plane = divide(line, height.target);
    const Tap<A> row = tap_of(height, static_cast<int>(line - plane * height.target));
    const Tap<A> column = tap_of(width, static_cast<int>(i - line * width.target));
    const T* image = x + plane * height.source * width.source;
    const T* upper = image + static_cast<int64_t>(row.first) * width.source;
    const T* lower = image + static_cast<int64_t>(row.second) * width.source;
    const A value = blend(
        row,
        blend(column, widen(upper[column.first]), widen(upper[column.second])),
        blend(column, widen(lower[column.first]), widen(lower[column.second])));
    out[i] = narrow<T>(skip ? value + widen(skip[i]) : value);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) upsample_backward_planes_kernel(
    const T* __restrict__ grad,
    T* __restrict__ grad_x,
    int64_t planes,
    Axis<accumulate_t<T>> height,
    Axis<accumulate_t<T>> width) {
  using A = accumulate_t<T>;
  const int64_t count = planes * height.source * width.source;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t line = divide(i, width.source);
    const int64_t plane = divide(line, height.source);
    const int y = static_cast<int>(line - plane * height.source);
    const int x = static_cast<int>(i - line * width.source);
    const T* image = grad + plane * height.target * width.target;
    const int left = first_reader(width, x);
    const int right = last_reader(width, x);
    const int bottom = last_reader(height, y);
    A sum = 0;
    for (int r = first_reader(height, y); r < bottom; ++r) {
      A row_sum = 0;
      for (int c = left; c < right; ++c) {
        const A g = widen(image[static_cast<int64_t>(r) * width.target + c]);
        add_target(row_sum, g, tap_of(width, c), x);
      }
      add_target(sum, row_sum, tap_of(height, r), y);
    }
    grad_x[i] = narrow<T>(sum);
  }
}

}  // namespace ran::cuda
