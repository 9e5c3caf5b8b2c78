// add_affine_relu and affine_relu: the tensor side, for CPU and CUDA alike. The schema and the fake
// implementation are in ran_kernels/add_affine_relu.py.
#include "add_affine_relu.h"

#include <torch/csrc/stable/library.h>

#include <limits>
#include <tuple>

#include "common/layout.h"

namespace ran {
namespace {

using torch::headeronly::ScalarType;

std::tuple<Tensor, Tensor> add_affine_relu(
    const Tensor& given, const OptionalTensor& b, const Tensor& scale, const Tensor& shift) {
  STD_TORCH_CHECK(given.dim() == 4, "a: expected (N, C, H, W)");
  const Tensor a = dense_layout(given);
  const DType dtype = dtype_of(a, "a");
  FeatureShape shape{a.size(0), a.size(1), a.size(2) * a.size(3), false};
  // Where both layouts are the same, vectors run along the longer dimension.
  shape.channels_last = shape.hw == 1 || (shape.c > 1 && !a.is_contiguous());
  constexpr int64_t limit = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(
      shape.hw <= limit && shape.c <= limit, "a: expected less than 2^31 positions, channels");
  const auto computed = dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
  const OptionalTensor factor = small_operand(scale, "scale", computed, a, {shape.c});
  const OptionalTensor offset = small_operand(shift, "shift", computed, a, {shape.c});
  const OptionalTensor added = features_like(b, "b", a);
  Tensor sum = b ? dense_like(a) : torch::stable::new_empty(a, {0});
  Tensor out = dense_like(a);
  const AddAffineRelu args{
      a.const_data_ptr(),
      pointer(added),
      pointer(factor),
      pointer(offset),
      b ? sum.mutable_data_ptr() : nullptr,
      out.mutable_data_ptr()};
  on_device_of(
      a,
      "add_affine_relu",
      [&] { cpu::add_affine_relu(dtype, shape, args); },
      [&](void* stream) { return cuda::add_affine_relu(dtype, shape, args, stream); });
  return {sum, out};
}

void implement(torch::stable::detail::StableLibrary& library) {
  library.impl("add_affine_relu", TORCH_BOX(&add_affine_relu));
}

RAN_REGISTER(implement)

}  // namespace
}  // namespace ran
