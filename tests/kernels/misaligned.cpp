// Runs upsample's CPU kernels on images that begin one byte past a multiple of 16: compiled with the
// sanitizer of alignment, a load or store that assumes more ends the program.
#include <array>
#include <cstdio>
#include <vector>

#include "csrc/upsample.h"

int main() {
  using namespace ran;
  for (const DType dtype :
       {DType::kFloat64, DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    const int64_t size = dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
    // Twofold, by shuffles, and ratios and rows too short for them.
    for (const auto [h, w, height, width] :
         {std::array<int64_t, 4>{5, 12, 10, 24}, {7, 31, 3, 4}, {2, 3, 3, 5}, {3, 4, 3, 4}}) {
      for (const bool last : {false, true}) {
        const UpsampleShape shape{2, 3, h, w, height, width, true, last};
        std::vector<char> source(6 * h * w * size + 64), target(6 * height * width * size + 64);
        std::vector<char> skip(target);
        cpu::upsample(dtype, {source.data() + 1, skip.data() + 1, target.data() + 1, shape})(
            0, 2 * height * (last ? 1 : 3));
        cpu::upsample_backward(dtype, {target.data() + 1, source.data() + 1, shape})(
            0, 2 * h * (last ? 1 : 3));
      }
    }
  }
  std::puts("aligned or not");
}
