// The Python module ran_kernels._C. Importing it registers the operators' implementations with
// PyTorch; what it offers itself is a report of how it was built.
#include <pybind11/pybind11.h>

#include "ran_build_info.h"  // written by setup.py: RAN_BUILD_INFO, a JSON text

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled operators of ran_kernels.";
  module.def(
      "build_info",
      [] { return pybind11::module_::import("json").attr("loads")(RAN_BUILD_INFO); },
      R"(What this extension was built with.

Returns a dict: compiler (str), flags (list of str), torch (version built with), torch_target (oldest
version it runs on), cuda (toolkit version or None), cuda_home, cuda_reason (why CUDA is in or out),
gpu_targets (list of str), and kernels: {kernel: {target: {registers, shared_bytes, stack_bytes,
local_bytes}}}. A kernel with local_bytes or stack_bytes above zero spills.)");
}
