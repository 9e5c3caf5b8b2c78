#include "../upsample.h"

#include "upsample_pixels.cuh"
#include "upsample_planes.cuh"

namespace ran::cuda {
namespace {

template <typename T>
struct Axes {
  Axis<accumulate_t<T>> height;
  Axis<accumulate_t<T>> width;

  explicit Axes(const UpsampleShape& s)
      : height(s.h, s.height, s.align_corners), width(s.w, s.width, s.align_corners) {}
};

template <typename T, int N>
int launch_planes(const UpsampleForward& a, cudaStream_t stream) {
  const UpsampleShape& s = a.shape;
  if constexpr (N > 1) {
    // A pack lies within one row, and all of them on their own multiples in memory.
    if (s.width % N != 0 || !aligned(a.out, a.skip)) {
      return launch_planes<T, N / 2>(a, stream);
    }
  }
  const PlaneGroups split(s);
  const Axes<T> axes(s);
  const dim3 blocks = blocks_for(split.groups * s.height * (s.width / N));
  upsample_planes_kernel<T, N><<<blocks, kThreads, 0, stream>>>(
      static_cast<const T*>(a.x),
      static_cast<const T*>(a.skip),
      static_cast<T*>(a.out),
      split,
      axes.height,
      axes.width);
  return cudaGetLastError();
}

template <typename T, int N>
int launch_pixels(const UpsampleForward& a, cudaStream_t stream) {
  const UpsampleShape& s = a.shape;
  const int64_t packs = s.channels / N;
  const PixelTiles tiles(s.n, s.height, s.width, packs);
  const Axes<T> axes(s);
  upsample_pixels_kernel<T, N><<<grid_of(tiles.blocks), kThreads, 0, stream>>>(
      static_cast<const T*>(a.x),
      static_cast<const T*>(a.skip),
      static_cast<T*>(a.out),
      packs,
      tiles,
      axes.height,
      axes.width);
  return cudaGetLastError();
}

template <typename T>
int launch_planes(const UpsampleBackward& a, cudaStream_t stream) {
  const UpsampleShape& s = a.shape;
  const PlaneGroups split(s);
  const Axes<T> axes(s);
  const dim3 blocks = blocks_for(split.groups * s.h * s.w);
  upsample_backward_planes_kernel<T><<<blocks, kThreads, 0, stream>>>(
      static_cast<const T*>(a.grad), static_cast<T*>(a.grad_x), split, axes.height, axes.width);
  return cudaGetLastError();
}

template <typename T, int N>
int launch_pixels(const UpsampleBackward& a, cudaStream_t stream) {
  const UpsampleShape& s = a.shape;
  const int64_t packs = s.channels / N;
  const PixelTiles tiles(s.n, s.h, s.w, packs);
  const Axes<T> axes(s);
  upsample_backward_pixels_kernel<T, N><<<grid_of(tiles.blocks), kThreads, 0, stream>>>(
      static_cast<const T*>(a.grad),
      static_cast<T*>(a.grad_x),
      packs,
      tiles,
      axes.height,
      axes.width);
  return cudaGetLastError();
}

}  // namespace

int upsample(DType dtype, const UpsampleForward& a, void* stream) {
  int error = cudaSuccess;
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto s = static_cast<cudaStream_t>(stream);
    if (!a.shape.channels_last) {
      error = launch_planes<T, kPack<T>>(a, s);
    } else if (a.shape.channels % kPack<T> == 0 && aligned(a.x, a.skip, a.out)) {
      error = launch_pixels<T, kPack<T>>(a, s);
    } else {
      error = launch_pixels<T, 1>(a, s);
    }
  });
  return error;
}

int upsample_backward(DType dtype, const UpsampleBackward& a, void* stream) {
  int error = cudaSuccess;
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto s = static_cast<cudaStream_t>(stream);
    if (!a.shape.channels_last) {
      error = launch_planes<T>(a, s);
    } else if (a.shape.channels % kPack<T> == 0 && aligned(a.grad, a.grad_x)) {
      error = launch_pixels<T, kPack<T>>(a, s);
    } else {
      error = launch_pixels<T, 1>(a, s);
    }
  });
  return error;
}

}  // namespace ran::cuda
