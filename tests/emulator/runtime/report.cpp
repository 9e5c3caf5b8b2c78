#include "report.h"

#include "block.h"

namespace emulator {
namespace {

constexpr int kKept = 8;
std::string text;
int count = 0;

}  // namespace

void report(const std::string& finding) {
  if (++count <= kKept) {
    text += finding + "\n";
  }
}

int findings() {
  return count;
}

std::string here() {
  return " [block " + std::to_string(blockIdx.x) + "," + std::to_string(blockIdx.y) + "," +
         std::to_string(blockIdx.z) + " thread " + std::to_string(block.current) + "]";
}

}  // namespace emulator

extern "C" const char* emulator_findings() {
  return emulator::text.c_str();
}
extern "C" void emulator_forget_findings() {
  emulator::text.clear();
  emulator::count = 0;
}
