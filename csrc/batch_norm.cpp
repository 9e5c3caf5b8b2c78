// Batch normalisation's operators: the tensor side, for CPU and CUDA alike. The schemas and the fake
// implementations are in ran_kernels/batch_norm_parts.py.
#include "batch_norm.h"

#include <torch/csrc/stable/library.h>

#include <limits>
#include <tuple>

#include "common/layout.h"

namespace ran {
namespace {

using torch::headeronly::ScalarType;

// x (N, C, H, W) in a layout that the kernels have, its sizes, and the type it is computed in.
struct Features {
  explicit Features(const Tensor& given, const char* op)
      : x(checked(given, op)),
        dtype(dtype_of(x, "x")),
        computed(dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float) {
    shape = {x.size(0), x.size(1), x.size(2) * x.size(3), false};
    // Where both layouts are the same, vectors run along the longer dimension.
    shape.channels_last = shape.hw == 1 || (shape.c > 1 && !x.is_contiguous());
  }

  static Tensor checked(const Tensor& given, const char* op) {
    constexpr int64_t limit = std::numeric_limits<int32_t>::max();
    STD_TORCH_CHECK(given.dim() == 4, op, ": x: expected (N, C, H, W)");
    STD_TORCH_CHECK(
        given.size(1) <= limit && given.size(2) * given.size(3) <= limit,
        op,
        ": x: expected less than 2^31 positions, channels");
    return dense_layout(given);
  }

  OptionalTensor per_channel(const OptionalTensor& t, const char* name) const {
    return small_operand(t, name, computed, x, {shape.c});
  }
  // A result (C,): 0, the sum of none, where no kernel runs.
  Tensor new_channels() const {
    Tensor t = torch::stable::new_empty(x, {shape.c}, computed);
    if (x.numel() == 0) {
      torch::stable::zero_(t);
    }
    return t;
  }
  Tensor none() const {
    return torch::stable::new_empty(x, {0});
  }

  Tensor x;
  DType dtype;
  ScalarType computed;
  FeatureShape shape{};
};

// What a channel is normalised with, and the tensors that hold it.
struct Channels {
  Channels(
      const Features& f,
      const Tensor& mean,
      const Tensor& variance,
      const OptionalTensor& weight,
      const OptionalTensor& bias,
      double eps)
      : tensors{
            f.per_channel(mean, "mean"),
            f.per_channel(variance, "variance"),
            f.per_channel(weight, "weight"),
            f.per_channel(bias, "bias")},
        args{
            pointer(tensors[0]),
            pointer(tensors[1]),
            pointer(tensors[2]),
            pointer(tensors[3]),
            eps} {}

  OptionalTensor tensors[4];
  BatchNormChannels args;
};

std::tuple<Tensor, Tensor, Tensor> batch_norm_statistics(
    const Tensor& given, const OptionalTensor& addend) {
  const Features f(given, "batch_norm_statistics");
  const OptionalTensor added = features_like(addend, "addend", f.x);
  Tensor sum = addend ? dense_like(f.x) : f.none();
  Tensor mean = f.new_channels();
  Tensor variance = f.new_channels();
  const BatchNormStatistics args{
      f.x.const_data_ptr(),
      pointer(added),
      addend ? sum.mutable_data_ptr() : nullptr,
      mean.mutable_data_ptr(),
      variance.mutable_data_ptr()};
  RAN_RUN_WITH_WORKSPACE(batch_norm_statistics);
  return {sum, mean, variance};
}

Tensor batch_norm_apply(
    const Tensor& given,
    const OptionalTensor& shortcut,
    const Tensor& mean,
    const Tensor& variance,
    const OptionalTensor& weight,
    const OptionalTensor& bias,
    double eps,
    bool relu) {
  const Features f(given, "batch_norm_apply");
  const OptionalTensor added = features_like(shortcut, "shortcut", f.x);
  const Channels channels(f, mean, variance, weight, bias, eps);
  Tensor out = dense_like(f.x);
  const BatchNormApply args{
      f.x.const_data_ptr(), pointer(added), channels.args, out.mutable_data_ptr(), relu};
  RAN_RUN(batch_norm_apply);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_reduce(
    const Tensor& grad,
    const Tensor& given,
    const OptionalTensor& out,
    const Tensor& mean,
    const Tensor& variance,
    const OptionalTensor& weight,
    const OptionalTensor& bias,
    double eps,
    bool relu) {
  const Features f(given, "batch_norm_reduce");
  STD_TORCH_CHECK(!out || relu, "out: expected with relu alone");
  const OptionalTensor g = features_like(grad, "grad", f.x);
  const OptionalTensor result = features_like(out, "out", f.x);
  const Channels channels(f, mean, variance, weight, bias, eps);
  Tensor masked = out ? dense_like(f.x) : f.none();
  Tensor sum_grad = f.new_channels();
  Tensor sum_grad_xhat = f.new_channels();
  const BatchNormReduce args{
      pointer(g),
      f.x.const_data_ptr(),
      pointer(result),
      channels.args,
      out ? masked.mutable_data_ptr() : nullptr,
      sum_grad.mutable_data_ptr(),
      sum_grad_xhat.mutable_data_ptr(),
      relu};
  RAN_RUN_WITH_WORKSPACE(batch_norm_reduce);
  return {masked, sum_grad, sum_grad_xhat};
}

Tensor batch_norm_grad(
    const Tensor& grad,
    const Tensor& given,
    const OptionalTensor& addend,
    const Tensor& mean,
    const Tensor& variance,
    const OptionalTensor& weight,
    const OptionalTensor& bias,
    const OptionalTensor& sum_grad,
    const OptionalTensor& sum_grad_xhat,
    int64_t count,
    double eps,
    bool relu) {
  const Features f(given, "batch_norm_grad");
  STD_TORCH_CHECK(
      sum_grad.has_value() == sum_grad_xhat.has_value(), "sum_grad: expected with sum_grad_xhat");
  const OptionalTensor g = features_like(grad, "grad", f.x);
  const OptionalTensor added = features_like(addend, "addend", f.x);
  const Channels channels(f, mean, variance, weight, bias, eps);
  const OptionalTensor sums = f.per_channel(sum_grad, "sum_grad");
  const OptionalTensor dots = f.per_channel(sum_grad_xhat, "sum_grad_xhat");
  Tensor grad_x = dense_like(f.x);
  const BatchNormGrad args{
      pointer(g),
      f.x.const_data_ptr(),
      pointer(added),
      channels.args,
      pointer(sums),
      pointer(dots),
      count,
      grad_x.mutable_data_ptr(),
      relu};
  RAN_RUN(batch_norm_grad);
  return grad_x;
}

void implement(torch::stable::detail::StableLibrary& library) {
  library.impl("batch_norm_statistics", TORCH_BOX(&batch_norm_statistics));
  library.impl("batch_norm_apply", TORCH_BOX(&batch_norm_apply));
  library.impl("batch_norm_reduce", TORCH_BOX(&batch_norm_reduce));
  library.impl("batch_norm_grad", TORCH_BOX(&batch_norm_grad));
}

RAN_REGISTER(implement)

}  // namespace
}  // namespace ran
