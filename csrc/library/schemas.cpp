// libran_schemas.so: the operators' schemas, for processes in which nobody imports ran_kernels.
// Loading it loads libran_kernels.so, which lies beside it, and the kernels with it.
//
// The schemas are those of the default overloads in ran_kernels/*.py; tests/serving/test_package.py
// compares them. They carry no tags: those are for compilers, which have Python.
#include <torch/csrc/stable/library.h>

#include <exception>
#include <optional>

#include "core.h"

namespace {

using torch::stable::detail::StableLibrary;

constexpr const char* kSchemas[] = {
    "add_affine_relu(Tensor a, Tensor? b, Tensor scale, Tensor shift) -> (Tensor sum, Tensor out)",
    "attention_gate(Tensor logits, Tensor trunk, bool residual, int activation) -> Tensor",
    "attention_gate_backward(Tensor grad, Tensor logits, Tensor trunk, bool residual,"
    " int activation) -> (Tensor, Tensor)",
    "batch_norm_apply(Tensor x, Tensor? shortcut, Tensor mean, Tensor variance, Tensor? weight,"
    " Tensor? bias, float eps, bool relu) -> Tensor",
    "batch_norm_grad(Tensor grad, Tensor x, Tensor? addend, Tensor mean, Tensor variance,"
    " Tensor? weight, Tensor? bias, Tensor? sum_grad, Tensor? sum_grad_xhat, SymInt count,"
    " float eps, bool relu) -> Tensor",
    "batch_norm_reduce(Tensor grad, Tensor x, Tensor? out, Tensor mean, Tensor variance,"
    " Tensor? weight, Tensor? bias, float eps, bool relu)"
    " -> (Tensor masked, Tensor sum_grad, Tensor sum_grad_xhat)",
    "batch_norm_statistics(Tensor x, Tensor? addend)"
    " -> (Tensor sum, Tensor mean, Tensor variance)",
    "cbam_gate(Tensor x, Tensor? channel_logits, Tensor? spatial_logits, Tensor? shortcut,"
    " bool relu) -> Tensor",
    "cbam_grad_channel(Tensor? grad, Tensor x, Tensor channel_logits, Tensor? spatial_logits,"
    " Tensor? grad_maps, Tensor? spatial_index) -> Tensor",
    "cbam_grad_spatial(Tensor grad, Tensor x, Tensor? channel_logits, Tensor spatial_logits,"
    " Tensor? out) -> (Tensor grad_spatial, Tensor masked)",
    "cbam_grad_x(Tensor x, Tensor? grad, Tensor? channel_logits, Tensor? spatial_logits,"
    " Tensor? grad_maps, Tensor? spatial_index, Tensor? grad_mean, Tensor? grad_max,"
    " Tensor? channel_index) -> Tensor",
    "channel_pool(Tensor x) -> (Tensor mean, Tensor max, Tensor index)",
    "spatial_pool(Tensor x, Tensor? channel_logits) -> (Tensor maps, Tensor index)",
    "upsample(Tensor x, SymInt height, SymInt width, bool align_corners) -> Tensor",
    "upsample_add(Tensor x, Tensor skip, bool align_corners) -> Tensor",
    "upsample_backward(Tensor grad, SymInt h, SymInt w, bool align_corners) -> Tensor",
};

// Holds the definitions; dropping it takes them back.
std::optional<StableLibrary>& definitions() {
  static std::optional<StableLibrary> library;
  return library;
}

bool define() {
  if (!ran_schemas_wanted([] { definitions().reset(); })) {
    return false;
  }
  try {
    StableLibrary& library =
        definitions().emplace(StableLibrary::Kind::FRAGMENT, "ran", nullptr, __FILE__, __LINE__);
    for (const char* schema : kSchemas) {
      library.def(schema);
    }
  } catch (const std::exception&) {
    // Defined by somebody who did not say so: a ran_kernels that has no libran_kernels.so. PyTorch
    // has printed where; an exception out of here would end the process.
    definitions().reset();
    return false;
  }
  return true;
}

[[maybe_unused]] const bool defined = define();

}  // namespace
