// Takes the place of csrc/common/device.h in the emulated extension: the tensors are the CPU's, and
// go to the CUDA launchers all the same. What the emulator finds wrong is the operator's error.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

extern "C" const char* emulator_findings();
extern "C" void emulator_forget_findings();

namespace ran {

const char* cuda_error_string(int error);

template <typename OnCpu, typename OnCuda>
void on_device_of(
    const torch::stable::Tensor& t, const char* op, OnCpu&& on_cpu, OnCuda&& on_cuda) {
  (void)on_cpu;
  if (t.numel() == 0) {
    return;
  }
  emulator_forget_findings();
  const int error = on_cuda(nullptr);
  STD_TORCH_CHECK(emulator_findings()[0] == '\0', op, ": ", emulator_findings());
  STD_TORCH_CHECK(error == 0, op, ": CUDA error: ", cuda_error_string(error));
}

}  // namespace ran

#define RAN_REGISTER(function)                            \
  STABLE_TORCH_LIBRARY_IMPL(ran_emulated, CPU, library) { \
    function(library);                                    \
  }
