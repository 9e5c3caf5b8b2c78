// The two layouts that operators on images have kernels for, and how a tensor gets into one.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <initializer_list>
#include <optional>

#include "tensor.h"

namespace ran {

using OptionalTensor = std::optional<Tensor>;

// The layout of results, by the same rule as in ran_kernels/layouts.py: channels_last where a
// position's channels lie side by side, contiguous otherwise.
inline bool is_channels_last(const Tensor& t) {
  return t.stride(1) == 1 && t.stride(3) != 1;
}

inline Tensor empty_image(
    const std::array<int64_t, 4>& size, bool channels_last, const Tensor& like) {
  return torch::stable::empty(
      {size.data(), size.size()},
      like.scalar_type(),
      std::nullopt,
      like.device(),
      std::nullopt,
      channels_last ? torch::headeronly::MemoryFormat::ChannelsLast
                    : torch::headeronly::MemoryFormat::Contiguous);
}

// Whether t is dense in that layout. Strides along sizes of 1 do not count.
inline bool lies_in(const Tensor& t, bool channels_last) {
  constexpr int kOrders[2][4] = {{3, 2, 1, 0}, {1, 3, 2, 0}};  // from the innermost dimension out
  int64_t stride = 1;
  for (const int d : kOrders[channels_last]) {
    if (t.size(d) != 1 && t.stride(d) != stride) {
      return false;
    }
    stride *= t.size(d);
  }
  return true;
}

// t itself where it is dense in that layout, else a copy that is.
inline Tensor in_layout(const Tensor& t, bool channels_last) {
  if (lies_in(t, channels_last)) {
    return t;
  }
  Tensor copy = empty_image({t.size(0), t.size(1), t.size(2), t.size(3)}, channels_last, t);
  torch::stable::copy_(copy, t);
  return copy;
}

// x itself where it is dense in the layout that results take from it, else a copy that is.
inline Tensor dense_layout(const Tensor& x) {
  return in_layout(x, is_channels_last(x));
}

// t checked to be like x and in x's layout, or nothing.
inline OptionalTensor features_like(const OptionalTensor& t, const char* name, const Tensor& x) {
  if (!t) {
    return std::nullopt;
  }
  check_same(*t, name, x, "x");
  return in_layout_of(*t, x);
}

// t checked to have this dtype and shape on x's device, and contiguous, or nothing.
inline OptionalTensor small_operand(
    const OptionalTensor& t,
    const char* name,
    torch::headeronly::ScalarType dtype,
    const Tensor& x,
    std::initializer_list<int64_t> shape) {
  if (!t) {
    return std::nullopt;
  }
  STD_TORCH_CHECK(t->scalar_type() == dtype, name, ": expected another dtype");
  STD_TORCH_CHECK(t->device() == x.device(), name, ": expected to be on the device of x");
  bool fits = t->dim() == static_cast<int64_t>(shape.size());
  for (int64_t d = 0; fits && d < t->dim(); ++d) {
    fits = t->size(d) == shape.begin()[d];
  }
  STD_TORCH_CHECK(fits, name, ": expected another shape");
  return torch::stable::contiguous(*t);
}

inline const void* pointer(const OptionalTensor& t) {
  return t ? t->const_data_ptr() : nullptr;
}

// Uninitialised memory of x's device for a kernel's partial results.
inline Tensor workspace_like(const Tensor& x, int64_t bytes) {
  return torch::stable::new_empty(x, {bytes}, torch::headeronly::ScalarType::Byte);
}

}  // namespace ran

// Runs cpu::op or cuda::op on `args` for the features `f`. Macros, because the two functions, the
// workspace's size and an error bear the operator's one name.
#define RAN_RUN(op)                                 \
  on_device_of(                                     \
      f.x,                                          \
      #op,                                          \
      [&] { cpu::op(f.dtype, f.shape, args); },     \
      [&](void* stream) { return cuda::op(f.dtype, f.shape, args, stream); })
#define RAN_RUN_WITH_WORKSPACE(op)                                                        \
  on_device_of(                                                                           \
      f.x,                                                                                \
      #op,                                                                                \
      [&] { cpu::op(f.dtype, f.shape, args); },                                           \
      [&](void* stream) {                                                                 \
        Tensor workspace = workspace_like(f.x, cuda::op##_workspace(f.dtype, f.shape));   \
        return cuda::op(f.dtype, f.shape, args, workspace.mutable_data_ptr(), stream);    \
      })
