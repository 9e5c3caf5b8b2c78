// Where an operator runs: on the CPU, or on the current stream of a GPU. Stable ABI only.
//
// The tests build the tensor side a second time with a file of their own in the place of this one,
// which sends tensors of the CPU to the CUDA kernels (tests/emulator/device.h).
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

namespace ran {

using torch::stable::Tensor;

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

