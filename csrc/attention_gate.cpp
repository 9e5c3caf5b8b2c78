// attention_gate: the tensor side, for CPU and CUDA alike. The schemas, the fake implementations and
// autograd are in ran_kernels/attention_gate.py.
#include "attention_gate.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "common/tensor.h"

namespace ran {
namespace {

Tensor attention_gate(const Tensor& logits, const Tensor& trunk, bool residual) {
  check_same(logits, "logits", trunk, "trunk");
  const DType dtype = dtype_of(trunk, "trunk");
  Tensor out = dense_like(trunk);
  const Tensor l = in_layout_of(logits, out);
  const Tensor t = in_layout_of(trunk, out);
  const AttentionGateForward args{
      l.const_data_ptr(), t.const_data_ptr(), out.mutable_data_ptr(), out.numel(), residual};
  on_device_of(
      trunk,
      "attention_gate",
      [&] {
        torch::stable::parallel_for(0, args.n, kGrain, [&](int64_t begin, int64_t end) {
          cpu::attention_gate(dtype, args, begin, end);
        });
      },
      [&](void* stream) { return cuda::attention_gate(dtype, args, stream); });
  return out;
}

std::tuple<Tensor, Tensor> attention_gate_backward(
    const Tensor& grad, const Tensor& logits, const Tensor& trunk, bool residual) {
  check_same(logits, "logits", trunk, "trunk");
  check_same(grad, "grad", trunk, "trunk");
  const DType dtype = dtype_of(trunk, "trunk");
  Tensor grad_trunk = dense_like(trunk);
  Tensor grad_logits = dense_like(grad_trunk);
  const Tensor g = in_layout_of(grad, grad_trunk);
  const Tensor l = in_layout_of(logits, grad_trunk);
  const Tensor t = in_layout_of(trunk, grad_trunk);
  const AttentionGateBackward args{
      g.const_data_ptr(),
      l.const_data_ptr(),
      t.const_data_ptr(),
      grad_logits.mutable_data_ptr(),
      grad_trunk.mutable_data_ptr(),
      grad_trunk.numel(),
      residual};
  on_device_of(
      trunk,
      "attention_gate_backward",
      [&] {
        torch::stable::parallel_for(0, args.n, kGrain, [&](int64_t begin, int64_t end) {
          cpu::attention_gate_backward(dtype, args, begin, end);
        });
      },
      [&](void* stream) { return cuda::attention_gate_backward(dtype, args, stream); });
  return {grad_logits, grad_trunk};
}

void implement(torch::stable::detail::StableLibrary& library) {
  library.impl("attention_gate", TORCH_BOX(&attention_gate));
  library.impl("attention_gate_backward", TORCH_BOX(&attention_gate_backward));
}

RAN_REGISTER(implement)

}  // namespace
}  // namespace ran
