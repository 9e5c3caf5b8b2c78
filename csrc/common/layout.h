// The two memory layouts that kernels with a dimension to sum over are written for, and how the
// tensors around such a kernel are brought into them. ran_kernels/layouts.py decides in the same way.
#pragma once

#include <initializer_list>
#include <optional>

#include "tensor.h"

namespace ran {

using torch::headeronly::MemoryFormat;
using OptionalTensor = std::optional<Tensor>;

// Whether the channels of (N, C, H, W) lie innermost, densely.
inline bool is_channels_last(const Tensor& x) {
  int64_t expected = 1;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (x.size(d) != 1 && x.stride(d) != expected) {
      return false;
    }
    expected *= x.size(d);
  }
  return true;
}

// x itself where it is contiguous or channels_last, else a copy in the nearer of the two.
inline Tensor dense_layout(const Tensor& x) {
  if (x.is_contiguous() || is_channels_last(x)) {
    return x;
  }
  const bool channels_inside = x.stride(1) < x.stride(3);
  return torch::stable::contiguous(
      x, channels_inside ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
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
