// attention_gate: the tensor side, for CPU and CUDA alike. The schemas, the fake implementations and
// autograd are in ran_kernels/attention_gate.py.
#include "attention_gate.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "common/layout.h"

namespace ran {
namespace {

GateShape gate_shape(const Tensor& t, int64_t activation) {
  const auto kind = static_cast<Activation>(activation);
  if (kind == Activation::kMixed) {
    return {kind, 1, t.numel(), 1};
  }
  const int64_t n = t.size(0);
  const int64_t c = t.size(1);
  const int64_t hw = t.size(2) * t.size(3);
  if (kind == Activation::kChannel) {
    return is_channels_last(t) ? GateShape{kind, n * hw, c, 1} : GateShape{kind, n, c, hw};
  }
  STD_TORCH_CHECK(kind == Activation::kSpatial, "activation: expected 0, 1 or 2");
  return is_channels_last(t) ? GateShape{kind, n, hw, c} : GateShape{kind, n * c, hw, 1};
}

// What the results are laid out as: any dense layout will do where elements do not depend on each
// other; groups are reduced in the two layouts there are kernels for.
Tensor result_like(const Tensor& trunk, int64_t activation) {
  return dense_like(activation == static_cast<int64_t>(Activation::kMixed) ? trunk : dense_layout(trunk));
}

Tensor attention_gate(
    const Tensor& logits, const Tensor& trunk, bool residual, int64_t activation) {
  check_same(logits, "logits", trunk, "trunk");
  const DType dtype = dtype_of(trunk, "trunk");
  Tensor out = result_like(trunk, activation);
  const Tensor l = in_layout_of(logits, out);
  const Tensor t = in_layout_of(trunk, out);
  const GateShape shape = gate_shape(out, activation);
  const AttentionGateForward args{
      l.const_data_ptr(), t.const_data_ptr(), out.mutable_data_ptr(), residual};
  on_device_of(
      trunk,
      "attention_gate",
      [&] { cpu::attention_gate(dtype, shape, args); },
      [&](void* stream) { return cuda::attention_gate(dtype, shape, args, stream); });
  return out;
}

std::tuple<Tensor, Tensor> attention_gate_backward(
    const Tensor& grad,
    const Tensor& logits,
    const Tensor& trunk,
    bool residual,
    int64_t activation) {
  check_same(logits, "logits", trunk, "trunk");
  check_same(grad, "grad", trunk, "trunk");
  const DType dtype = dtype_of(trunk, "trunk");
  Tensor grad_trunk = result_like(trunk, activation);
  Tensor grad_logits = dense_like(grad_trunk);
  const Tensor g = in_layout_of(grad, grad_trunk);
  const Tensor l = in_layout_of(logits, grad_trunk);
  const Tensor t = in_layout_of(trunk, grad_trunk);
  const GateShape shape = gate_shape(grad_trunk, activation);
  const AttentionGateBackward args{
      g.const_data_ptr(),
      l.const_data_ptr(),
      t.const_data_ptr(),
      grad_logits.mutable_data_ptr(),
      grad_trunk.mutable_data_ptr(),
      residual};
  on_device_of(
      trunk,
      "attention_gate_backward",
      [&] { cpu::attention_gate_backward(dtype, shape, args); },
      [&](void* stream) { return cuda::attention_gate_backward(dtype, shape, args, stream); });
  return {grad_logits, grad_trunk};
}

void implement(torch::stable::detail::StableLibrary& library) {
  library.impl("attention_gate", TORCH_BOX(&attention_gate));
  library.impl("attention_gate_backward", TORCH_BOX(&attention_gate_backward));
}

RAN_REGISTER(implement)

}  // namespace
}  // namespace ran
