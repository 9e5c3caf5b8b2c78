// upsample and upsample_add: the tensor side, for CPU and CUDA alike. The schemas, the fake
// implementations and autograd are in ran_kernels/upsample.py.
#include "upsample.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "common/layout.h"

namespace ran {
namespace {

void check_image(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4, name, ": expected (N, C, H, W)");
}

// Coordinates within an image are 32-bit, offsets into it 64-bit.
void check_size(const char* name, int64_t height, int64_t width) {
  STD_TORCH_CHECK(
      0 < height && height <= INT32_MAX && 0 < width && width <= INT32_MAX,
      name,
      ": expected a height and a width from 1 to 2**31 - 1, got ",
      height,
      " and ",
      width);
}

// Rows a thread must get, so that it gets kGrain elements.
int64_t row_grain(const UpsampleShape& s) {
  return std::max<int64_t>(1, kGrain / (s.width * (s.channels_last ? s.channels : 1)));
}

Tensor interpolate(
    const Tensor& x, const Tensor* skip, int64_t height, int64_t width, bool align_corners) {
  check_image(x, "x");
  check_size("size", height, width);
  check_size("x", x.size(2), x.size(3));
  const DType dtype = dtype_of(x, "x");
  const bool channels_last = is_channels_last(skip ? *skip : x);
  const UpsampleShape shape{
      x.size(0), x.size(1), x.size(2), x.size(3), height, width, align_corners, channels_last};
  Tensor out = empty_image({shape.n, shape.channels, height, width}, channels_last, x);
  const Tensor source = in_layout(x, channels_last);
  const Tensor added = in_layout(skip ? *skip : out, channels_last);
  const UpsampleForward args{
      source.const_data_ptr(),
      skip ? added.const_data_ptr() : nullptr,
      out.mutable_data_ptr(),
      shape};
  on_device_of(
      out,
      "upsample",
      [&] {
        const int64_t rows = shape.n * height * (channels_last ? 1 : shape.channels);
        torch::stable::parallel_for(0, rows, row_grain(shape), cpu::upsample(dtype, args));
      },
      [&](void* stream) { return cuda::upsample(dtype, args, stream); });
  return out;
}

Tensor upsample(const Tensor& x, int64_t height, int64_t width, bool align_corners) {
  return interpolate(x, nullptr, height, width, align_corners);
}

Tensor upsample_add(const Tensor& x, const Tensor& skip, bool align_corners) {
  check_image(skip, "skip");
  check_image(x, "x");
  STD_TORCH_CHECK(x.scalar_type() == skip.scalar_type(), "x: expected the dtype of skip");
  STD_TORCH_CHECK(x.device() == skip.device(), "x: expected to be on the device of skip");
  STD_TORCH_CHECK(
      x.size(0) == skip.size(0) && x.size(1) == skip.size(1),
      "x: expected the batch and channels of skip");
  return interpolate(x, &skip, skip.size(2), skip.size(3), align_corners);
}

Tensor upsample_backward(const Tensor& grad, int64_t h, int64_t w, bool align_corners) {
  check_image(grad, "grad");
  check_size("grad", grad.size(2), grad.size(3));
  check_size("x", h, w);
  const DType dtype = dtype_of(grad, "grad");
  const bool channels_last = is_channels_last(grad);
  const UpsampleShape shape{
      grad.size(0), grad.size(1), h, w, grad.size(2), grad.size(3), align_corners, channels_last};
  Tensor grad_x = empty_image({shape.n, shape.channels, h, w}, channels_last, grad);
  const Tensor incoming = in_layout(grad, channels_last);
  const UpsampleBackward args{incoming.const_data_ptr(), grad_x.mutable_data_ptr(), shape};
  on_device_of(
      grad_x,
      "upsample_backward",
      [&] {
        const int64_t rows = shape.n * h * (channels_last ? 1 : shape.channels);
        torch::stable::parallel_for(0, rows, row_grain(shape), cpu::upsample_backward(dtype, args));
      },
      [&](void* stream) { return cuda::upsample_backward(dtype, args, stream); });
  return grad_x;
}

void implement(torch::stable::detail::StableLibrary& library) {
  library.impl("upsample", TORCH_BOX(&upsample));
  library.impl("upsample_add", TORCH_BOX(&upsample_add));
  library.impl("upsample_backward", TORCH_BOX(&upsample_backward));
}

RAN_REGISTER(implement)

}  // namespace
}  // namespace ran
