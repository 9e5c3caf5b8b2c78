// The Python module ran_kernels._C: the build report of libran_kernels.so, as Python's objects.
// Nothing else needs it, and a wheel for every Python has none.
#include <pybind11/pybind11.h>

#include "core.h"

PYBIND11_MODULE(_C, module) {
  module.doc() = "The build report of ran_kernels' compiled operators.";
  module.def(
      "build_info",
      [] { return pybind11::module_::import("json").attr("loads")(ran_build_info()); },
      "As ran_kernels.extension.build_info.");
}
