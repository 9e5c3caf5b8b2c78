#include "../upsample.h"

#include "upsample_pixels.cuh"
#include "upsample_planes.cuh"
#include "upsample_staged_pixels.cuh"
#include "upsample_staged_planes.cuh"

namespace ran::cuda {
namespace {

template <typename T>
struct Axes {
  Axis<accumulate_t<T>> height;
  Axis<accumulate_t<T>> width;

  explicit Axes(const UpsampleShape& s)
      : height(s.h, s.height, s.align_corners), width(s.w, s.width, s.align_corners) {}
};

// Images of which a launch takes a slice, all of the shape s, so that its offsets are 32-bit ones.
int64_t images_a_slice(const UpsampleShape& s, int64_t channels) {
  return kSlice / channels / std::max(s.h * s.w, s.height * s.width);
}

// ---- contiguous ---------------------------------------------------------------------------------

template <typename T>
int launch_planes(const UpsampleForward& a, cudaStream_t stream) {
  using A = accumulate_t<T>;
  const UpsampleShape& s = a.shape;
  const Axes<T> axes(s);
  const auto* x = static_cast<const T*>(a.x);
  const auto* skip = static_cast<const T*>(a.skip);
  auto* out = static_cast<T*>(a.out);
  const int64_t planes = s.n * s.channels;
  const RunRows rows(s.height, s.width, s.h, kRun<T>, [&](int64_t targets) {
    return sources_of(axes.height, targets);
  });
  const int64_t shared = kRun<T> * sizeof(A) + rows.result * sizeof(Tap<A>) +
                         (rows.operand * s.w + 2 * kPack<T>) * sizeof(T);
  const int64_t most = images_a_slice(s, 1);
  if (shared <= kSharedBytes && most >= kPack<T> && aligned(x, skip, out)) {
    return in_slices(planes, most, [&](int64_t first, int64_t count) {
      const int64_t at = first * s.height * s.width;
      const RunTiles tiles(count, s.height, s.width, kRun<T>, rows);
      const dim3 blocks = blocks_sharing(tiles.tiles, kThreads);
      upsample_staged_planes_kernel<T>
          <<<blocks, kThreads, shared, stream>>>(
              x + first * s.h * s.w,
              skip ? skip + at : nullptr,
              out + at,
              tiles,
              axes.height,
              axes.width);
    });
  }
  const dim3 blocks = looping_blocks_for(planes * s.height * s.width);
  upsample_planes_kernel<T><<<blocks, kThreads, 0, stream>>>(
      x, skip, out, planes, axes.height, axes.width);
  return cudaGetLastError();
}

template <typename T>
int launch_planes(const UpsampleBackward& a, cudaStream_t stream) {
  using A = accumulate_t<T>;
  const UpsampleShape& s = a.shape;
  const Axes<T> axes(s);
  const auto* grad = static_cast<const T*>(a.grad);
  auto* grad_x = static_cast<T*>(a.grad_x);
  const int64_t planes = s.n * s.channels;
  const RunRows rows(s.h, s.w, s.height, kRun<T>, [&](int64_t sources) {
    return readers_of(axes.height, sources);
  });
  const int64_t shared = kRun<T> * sizeof(A) + rows.operand * sizeof(Tap<A>) +
                         rows.result * sizeof(int) +
                         (rows.operand * s.width + 2 * kPack<T>) * sizeof(T);
  const int64_t most = images_a_slice(s, 1);
  if (shared <= kSharedBytes && s.w <= kThreads && readers_of(axes.width, 1) <= kReaders &&
      most >= kPack<T> && aligned(grad, grad_x)) {
    return in_slices(planes, most, [&](int64_t first, int64_t count) {
      const RunTiles tiles(count, s.h, s.w, kRun<T>, rows);
      const dim3 blocks = blocks_sharing(tiles.tiles, kThreads);
      upsample_backward_staged_planes_kernel<T>
          <<<blocks, kThreads, shared, stream>>>(
              grad + first * s.height * s.width,
              grad_x + first * s.h * s.w,
              tiles,
              axes.height,
              axes.width);
    });
  }
  const dim3 blocks = looping_blocks_for(planes * s.h * s.w);
  upsample_backward_planes_kernel<T><<<blocks, kThreads, 0, stream>>>(
      grad, grad_x, planes, axes.height, axes.width);
  return cudaGetLastError();
}

// ---- channels_last ------------------------------------------------------------------------------

template <typename T, int N>
int launch_pixels(const UpsampleForward& a, cudaStream_t stream) {
  const UpsampleShape& s = a.shape;
  const Axes<T> axes(s);
  const int64_t source = s.h * s.w * s.channels;
  const int64_t target = s.height * s.width * s.channels;
  const auto* x = static_cast<const T*>(a.x);
  const auto* skip = static_cast<const T*>(a.skip);
  auto* out = static_cast<T*>(a.out);
  const int64_t most = images_a_slice(s, s.channels);
  if constexpr (N > 1) {
    const BandTiles tiles = forward_bands(s, axes.height, N);
    if (tiles.shared <= kSharedBytes && most > 0) {
      return in_slices(s.n, most, [&](int64_t first, int64_t count) {
        const int images = static_cast<int>(count);
        const dim3 blocks = tiles.blocks(images);
        upsample_staged_pixels_kernel<T>
            <<<blocks, tiles.threads, tiles.shared, stream>>>(
                x + first * source,
                skip ? skip + first * target : nullptr,
                out + first * target,
                tiles,
                images,
                axes.height,
                axes.width);
      });
    }
  }
  const PixelTiles tiles(s.height, s.width, s.channels / N);
  return in_slices(s.n, kMaxGridX / tiles.per_image, [&](int64_t first, int64_t count) {
    const dim3 blocks = grid_of(count * tiles.per_image);
    upsample_pixels_kernel<T, N><<<blocks, kThreads, 0, stream>>>(
        x + first * source,
        skip ? skip + first * target : nullptr,
        out + first * target,
        tiles,
        axes.height,
        axes.width);
  });
}

template <typename T, int N>
int launch_pixels(const UpsampleBackward& a, cudaStream_t stream) {
  const UpsampleShape& s = a.shape;
  const Axes<T> axes(s);
  const int64_t source = s.h * s.w * s.channels;
  const int64_t target = s.height * s.width * s.channels;
  const auto* grad = static_cast<const T*>(a.grad);
  auto* grad_x = static_cast<T*>(a.grad_x);
  const int64_t most = images_a_slice(s, s.channels);
  if constexpr (N > 1) {
    const BandTiles tiles = backward_bands(s, axes.width, N);
    if (tiles.shared <= kSharedBytes && most > 0) {
      return in_slices(s.n, most, [&](int64_t first, int64_t count) {
        const int images = static_cast<int>(count);
        const dim3 blocks = tiles.blocks(images);
        upsample_backward_staged_pixels_kernel<T>
            <<<blocks, tiles.threads, tiles.shared, stream>>>(
                grad + first * target,
                grad_x + first * source,
                tiles,
                images,
                axes.height,
                axes.width);
      });
    }
  }
  const PixelTiles tiles(s.h, s.w, s.channels / N);
  return in_slices(s.n, kMaxGridX / tiles.per_image, [&](int64_t first, int64_t count) {
    const dim3 blocks = grid_of(count * tiles.per_image);
    upsample_backward_pixels_kernel<T, N><<<blocks, kThreads, 0, stream>>>(
        grad + first * target, grad_x + first * source, tiles, axes.height, axes.width);
  });
}

}  // namespace

int upsample(DType dtype, const UpsampleForward& a, void* stream) {
  int error = cudaSuccess;
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto s = static_cast<cudaStream_t>(stream);
    if (!a.shape.channels_last) {
      error = launch_planes<T>(a, s);
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
