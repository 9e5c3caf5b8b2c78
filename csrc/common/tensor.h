// What the operators' tensor sides share: dtype tags, layouts, devices. Stable ABI only.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#include "dtype.h"

namespace ran {

using torch::stable::Tensor;

inline DType dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case torch::headeronly::ScalarType::Double:
      return DType::kFloat64;
    case torch::headeronly::ScalarType::Float:
      return DType::kFloat32;
    case torch::headeronly::ScalarType::Half:
      return DType::kFloat16;
    case torch::headeronly::ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      STD_TORCH_CHECK(false, name, ": expected float64, float32, float16 or bfloat16");
  }
}

inline void check_same(const Tensor& t, const char* name, const Tensor& like, const char* like_name) {
  STD_TORCH_CHECK(
      t.scalar_type() == like.scalar_type(), name, ": expected the dtype of ", like_name);
  STD_TORCH_CHECK(
      t.device() == like.device(), name, ": expected to be on the device of ", like_name);
  STD_TORCH_CHECK(t.dim() == like.dim(), name, ": expected the shape of ", like_name);
  for (int64_t d = 0; d < t.dim(); ++d) {
    STD_TORCH_CHECK(t.size(d) == like.size(d), name, ": expected the shape of ", like_name);
  }
}

// Whether element i of both lies at the same place in memory. A dimension of size 1 is never
// stepped along, so its stride, which PyTorch leaves arbitrary, does not count.
inline bool same_layout(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) {
      return false;
    }
  }
  return true;
}

// A tensor like t with t's strides where t is dense, and the nearest dense ones where it is not.
inline Tensor dense_like(const Tensor& t) {
  return torch::stable::empty_like(t);
}

// t itself where it is laid out as `like` is, else a copy that is.
inline Tensor in_layout_of(const Tensor& t, const Tensor& like) {
  if (same_layout(t, like)) {
    return t;
  }
  Tensor copy = dense_like(like);
  torch::stable::copy_(copy, t);
  return copy;
}

#ifdef RAN_WITH_CUDA
// Defined beside the CUDA kernels, so that nothing here needs a CUDA header.
const char* cuda_error_string(int error);

// Makes a tensor's device current for the life of the object and knows its current stream.
class CudaScope {
 public:
  explicit CudaScope(const Tensor& t) : guard_(t.get_device_index()) {
    // torch 2.11 has no STABLE_ twin of this macro.
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream_));
  }
  void* stream() const {
    return stream_;
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};
#endif

// Runs on_cpu(), or on_cuda(stream), which returns a cudaError_t. Without elements neither runs.
template <typename OnCpu, typename OnCuda>
void on_device_of(const Tensor& t, const char* op, OnCpu&& on_cpu, OnCuda&& on_cuda) {
  if (t.numel() == 0) {
    return;
  }
  if (t.is_cpu()) {
    on_cpu();
    return;
  }
#ifdef RAN_WITH_CUDA
  const CudaScope scope(t);
  const int error = on_cuda(scope.stream());
  STD_TORCH_CHECK(error == 0, op, ": CUDA error: ", cuda_error_string(error));
#else
  (void)on_cuda;
  STD_TORCH_CHECK(false, op, ": this build has no CUDA kernels");
#endif
}

// Elements below which another thread costs more than it brings.
constexpr int64_t kGrain = 32768;

}  // namespace ran

// Registers what `function` implements for every device this build has kernels for.
#ifdef RAN_WITH_CUDA
#define RAN_REGISTER(function)                  \
  STABLE_TORCH_LIBRARY_IMPL(ran, CPU, library) { \
    function(library);                          \
  }                                             \
  STABLE_TORCH_LIBRARY_IMPL(ran, CUDA, library) { \
    function(library);                          \
  }
#else
#define RAN_REGISTER(function)                  \
  STABLE_TORCH_LIBRARY_IMPL(ran, CPU, library) { \
    function(library);                          \
  }
#endif
