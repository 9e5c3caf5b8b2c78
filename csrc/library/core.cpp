#include "core.h"

#include "ran_build_info.h"  // written by setup.py: RAN_BUILD_INFO, a JSON text

namespace {

bool python_defines = false;
void (*forget_schemas)() = nullptr;

}  // namespace

const char* ran_build_info() {
  return RAN_BUILD_INFO;
}

bool ran_schemas_wanted(void (*forget)()) {
  if (python_defines || forget_schemas != nullptr) {
    return false;
  }
  forget_schemas = forget;
  return true;
}

void ran_python_defines() {
  python_defines = true;
  if (forget_schemas != nullptr) {
    forget_schemas();
    forget_schemas = nullptr;
  }
}
