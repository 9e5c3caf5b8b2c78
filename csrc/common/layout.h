// The two layouts that operators on images have kernels for, and how a tensor gets into one.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>

#include "tensor.h"

namespace ran {

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

}  // namespace ran
