// Class scores from a network that `ran export RUN -o net.pt2 --aoti` wrote, without Python:
//   scores LIBRARY net.pt2 images.bin CHANNELS SIZE
// LIBRARY is what ran_kernels.library_path() says; images.bin holds normalised images as float32,
// (N, CHANNELS, SIZE, SIZE), as NumPy's tofile writes them.
#include <ATen/ops/from_file.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <filesystem>
#include <iostream>
#include <string>

int main(int argc, char** argv) {
  if (argc != 6) {
    std::cerr << "usage: scores LIBRARY PACKAGE IMAGES CHANNELS SIZE\n";
    return 2;
  }
  // PyTorch looks for the package's operators by name.
  if (dlopen(argv[1], RTLD_NOW) == nullptr) {
    std::cerr << dlerror() << '\n';
    return 1;
  }
  const int64_t channels = std::stoll(argv[4]), size = std::stoll(argv[5]);
  const int64_t numbers = std::filesystem::file_size(argv[3]) / sizeof(float);
  const at::Tensor images = at::from_file(argv[3], /*shared=*/false, numbers, at::kFloat)
                                .view({-1, channels, size, size});
  torch::inductor::AOTIModelPackageLoader network(argv[2]);
  const at::Tensor scores = network.run({images})[0].softmax(1);
  for (int64_t image = 0; image < scores.size(0); ++image) {
    for (int64_t c = 0; c < scores.size(1); ++c) {
      std::cout << scores[image][c].item<float>() << (c + 1 < scores.size(1) ? ' ' : '\n');
    }
  }
}
