// CBAM's operators: the tensor side, for CPU and CUDA alike. The schemas, the fake implementations
// and autograd are in ran_kernels/{channel_pool,spatial_pool,cbam_gate,cbam_backward}.py.
#include "cbam.h"

#include <torch/csrc/stable/library.h>

#include <limits>
#include <tuple>

#include "common/layout.h"

namespace ran {
namespace {

using torch::headeronly::ScalarType;

// Indices count positions and channels in 32 bits, and a block of GPU threads steps past the end.
constexpr int64_t kMostIndices = std::numeric_limits<int32_t>::max() - 1024;

// x (N, C, H, W) in a layout that the kernels have, and its sizes.
struct Features {
  explicit Features(const Tensor& given, const char* op)
      : x(checked(given, op)), dtype(dtype_of(x, "x")), height(x.size(2)), width(x.size(3)) {
    shape = {x.size(0), x.size(1), height * width, false};
    // Where both layouts are the same, vectors run along the longer dimension.
    shape.channels_last = shape.hw == 1 || (shape.c > 1 && !x.is_contiguous());
  }

  static Tensor checked(const Tensor& given, const char* op) {
    STD_TORCH_CHECK(given.dim() == 4, op, ": x: expected (N, C, H, W)");
    STD_TORCH_CHECK(
        given.size(1) <= kMostIndices && given.size(2) * given.size(3) <= kMostIndices,
        op,
        ": x: expected at most ",
        kMostIndices,
        " positions and as many channels");
    return dense_layout(given);
  }

  // Small operands: (N, C), (N, 1, H, W), (N, 2, H, W), and indices (N, C) and (N, H, W).
  OptionalTensor per_channel(const OptionalTensor& t, const char* name) const {
    return small_operand(t, name, x.scalar_type(), x, {shape.n, shape.c});
  }
  OptionalTensor per_position(const OptionalTensor& t, const char* name) const {
    return small_operand(t, name, x.scalar_type(), x, {shape.n, 1, height, width});
  }
  OptionalTensor two_maps(const OptionalTensor& t, const char* name) const {
    return small_operand(t, name, x.scalar_type(), x, {shape.n, 2, height, width});
  }
  OptionalTensor channel_index(const OptionalTensor& t) const {
    return small_operand(t, "channel_index", ScalarType::Int, x, {shape.n, shape.c});
  }
  OptionalTensor spatial_index(const OptionalTensor& t) const {
    return small_operand(t, "spatial_index", ScalarType::Int, x, {shape.n, height, width});
  }

  Tensor x;
  DType dtype;
  int64_t height;
  int64_t width;
  FeatureShape shape{};
};

const int32_t* indices(const OptionalTensor& t) {
  return static_cast<const int32_t*>(pointer(t));
}

std::tuple<Tensor, Tensor, Tensor> channel_pool(const Tensor& given) {
  const Features f(given, "channel_pool");
  Tensor mean = torch::stable::new_empty(f.x, {f.shape.n, f.shape.c});
  Tensor max = torch::stable::new_empty(f.x, {f.shape.n, f.shape.c});
  Tensor index = torch::stable::new_empty(f.x, {f.shape.n, f.shape.c}, ScalarType::Int);
  const ChannelPool args{
      f.x.const_data_ptr(),
      mean.mutable_data_ptr(),
      max.mutable_data_ptr(),
      static_cast<int32_t*>(index.mutable_data_ptr())};
  RAN_RUN_WITH_WORKSPACE(channel_pool);
  return {mean, max, index};
}

std::tuple<Tensor, Tensor> spatial_pool(const Tensor& given, const OptionalTensor& channel_logits) {
  const Features f(given, "spatial_pool");
  const OptionalTensor channel = f.per_channel(channel_logits, "channel_logits");
  Tensor maps = torch::stable::new_empty(f.x, {f.shape.n, 2, f.height, f.width});
  Tensor index = torch::stable::new_empty(f.x, {f.shape.n, f.height, f.width}, ScalarType::Int);
  const SpatialPool args{
      f.x.const_data_ptr(),
      pointer(channel),
      maps.mutable_data_ptr(),
      static_cast<int32_t*>(index.mutable_data_ptr())};
  RAN_RUN_WITH_WORKSPACE(spatial_pool);
  return {maps, index};
}

Tensor cbam_gate(
    const Tensor& given,
    const OptionalTensor& channel_logits,
    const OptionalTensor& spatial_logits,
    const OptionalTensor& shortcut,
    bool relu) {
  const Features f(given, "cbam_gate");
  const OptionalTensor channel = f.per_channel(channel_logits, "channel_logits");
  const OptionalTensor spatial = f.per_position(spatial_logits, "spatial_logits");
  const OptionalTensor added = features_like(shortcut, "shortcut", f.x);
  Tensor out = dense_like(f.x);
  const CbamGate args{
      f.x.const_data_ptr(),
      pointer(channel),
      pointer(spatial),
      pointer(added),
      out.mutable_data_ptr(),
      relu};
  RAN_RUN(cbam_gate);
  return out;
}

std::tuple<Tensor, Tensor> cbam_grad_spatial(
    const Tensor& grad,
    const Tensor& given,
    const OptionalTensor& channel_logits,
    const Tensor& spatial_logits,
    const OptionalTensor& out) {
  const Features f(given, "cbam_grad_spatial");
  const OptionalTensor g = features_like(grad, "grad", f.x);
  const OptionalTensor channel = f.per_channel(channel_logits, "channel_logits");
  const OptionalTensor spatial = f.per_position(spatial_logits, "spatial_logits");
  const OptionalTensor result = features_like(out, "out", f.x);
  Tensor grad_spatial = torch::stable::new_empty(f.x, {f.shape.n, 1, f.height, f.width});
  if (f.x.numel() == 0) {
    torch::stable::zero_(grad_spatial);  // without channels, the sum of none
  }
  Tensor masked = out ? dense_like(f.x) : torch::stable::new_empty(f.x, {0});
  const CbamGradSpatial args{
      pointer(g),
      f.x.const_data_ptr(),
      pointer(channel),
      pointer(spatial),
      pointer(result),
      grad_spatial.mutable_data_ptr(),
      out ? masked.mutable_data_ptr() : nullptr};
  RAN_RUN_WITH_WORKSPACE(cbam_grad_spatial);
  return {grad_spatial, masked};
}

Tensor cbam_grad_channel(
    const OptionalTensor& grad,
    const Tensor& given,
    const Tensor& channel_logits,
    const OptionalTensor& spatial_logits,
    const OptionalTensor& grad_maps,
    const OptionalTensor& spatial_index) {
  const Features f(given, "cbam_grad_channel");
  const OptionalTensor g = features_like(grad, "grad", f.x);
  const OptionalTensor channel = f.per_channel(channel_logits, "channel_logits");
  const OptionalTensor spatial = f.per_position(spatial_logits, "spatial_logits");
  const OptionalTensor maps = f.two_maps(grad_maps, "grad_maps");
  const OptionalTensor index = f.spatial_index(spatial_index);
  Tensor grad_channel = torch::stable::new_empty(f.x, {f.shape.n, f.shape.c});
  if (f.x.numel() == 0) {
    torch::stable::zero_(grad_channel);  // without positions, the sum of none
  }
  const CbamGradChannel args{
      {pointer(g), pointer(spatial), pointer(maps), indices(index)},
      f.x.const_data_ptr(),
      pointer(channel),
      grad_channel.mutable_data_ptr()};
  RAN_RUN_WITH_WORKSPACE(cbam_grad_channel);
  return grad_channel;
}

Tensor cbam_grad_x(
    const Tensor& given,
    const OptionalTensor& grad,
    const OptionalTensor& channel_logits,
    const OptionalTensor& spatial_logits,
    const OptionalTensor& grad_maps,
    const OptionalTensor& spatial_index,
    const OptionalTensor& grad_mean,
    const OptionalTensor& grad_max,
    const OptionalTensor& channel_index) {
  const Features f(given, "cbam_grad_x");
  const OptionalTensor g = features_like(grad, "grad", f.x);
  const OptionalTensor channel = f.per_channel(channel_logits, "channel_logits");
  const OptionalTensor spatial = f.per_position(spatial_logits, "spatial_logits");
  const OptionalTensor maps = f.two_maps(grad_maps, "grad_maps");
  const OptionalTensor channels = f.spatial_index(spatial_index);
  const OptionalTensor mean = f.per_channel(grad_mean, "grad_mean");
  const OptionalTensor max = f.per_channel(grad_max, "grad_max");
  const OptionalTensor positions = f.channel_index(channel_index);
  Tensor grad_x = dense_like(f.x);
  const CbamGradX args{
      {pointer(g), pointer(spatial), pointer(maps), indices(channels)},
      pointer(channel),
      pointer(mean),
      pointer(max),
      indices(positions),
      grad_x.mutable_data_ptr()};
  RAN_RUN(cbam_grad_x);
  return grad_x;
}

void implement(torch::stable::detail::StableLibrary& library) {
  library.impl("channel_pool", TORCH_BOX(&channel_pool));
  library.impl("spatial_pool", TORCH_BOX(&spatial_pool));
  library.impl("cbam_gate", TORCH_BOX(&cbam_gate));
  library.impl("cbam_grad_spatial", TORCH_BOX(&cbam_grad_spatial));
  library.impl("cbam_grad_channel", TORCH_BOX(&cbam_grad_channel));
  library.impl("cbam_grad_x", TORCH_BOX(&cbam_grad_x));
}

RAN_REGISTER(implement)

}  // namespace
}  // namespace ran
