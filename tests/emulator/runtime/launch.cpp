// Launches: checked against a GPU's limits, recorded, and run block after block.
#include <cuda_runtime.h>

#include <cmath>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "block.h"
#include "report.h"
#include "settings.h"
#include "shared.h"
#include "watch.h"

namespace emulator {
namespace {

constexpr unsigned kMostGridX = 2147483647u;
constexpr unsigned kMostGridYZ = 65535;
constexpr unsigned kMostBlockZ = 64;
constexpr size_t kDefaultDynamicShared = 48 * 1024;
// Of a launch that does everything wrong, this many findings are enough.
constexpr int kEnoughFindings = 64;

struct Record {
  const void* kernel;
  dim3 grid;
  dim3 block;
  size_t shared_bytes;
  uint64_t blocks_run;
};
std::vector<Record> records;
std::map<const void*, uint64_t> entered;
std::map<const void*, size_t> dynamic_shared_limit;
cudaError_t last_error = cudaSuccess;

std::string text_of(const Record& r) {
  const auto three = [](const dim3& d) {
    return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) +
           ")";
  };
  return "launch: grid " + three(r.grid) + ", block " + three(r.block) + ", " +
         std::to_string(r.shared_bytes) + " bytes of shared memory";
}

cudaError_t check(const Record& r) {
  const dim3& g = r.grid;
  const dim3& b = r.block;
  if (g.x == 0 || g.y == 0 || g.z == 0 || g.x > kMostGridX || g.y > kMostGridYZ ||
      g.z > kMostGridYZ || b.x == 0 || b.y == 0 || b.z == 0 || b.z > kMostBlockZ ||
      uint64_t{b.x} * b.y * b.z > kMostThreads) {
    report(text_of(r) + ": invalid configuration");
    return cudaErrorInvalidConfiguration;
  }
  const auto found = dynamic_shared_limit.find(r.kernel);
  const size_t limit = found != dynamic_shared_limit.end() ? found->second : kDefaultDynamicShared;
  if (r.shared_bytes > limit) {
    report(text_of(r) + ": more shared memory than allowed");
    return cudaErrorInvalidValue;
  }
  if (b.x * b.y * b.z % warpSize != 0) {
    report(text_of(r) + ": not whole warps");
  }
  return cudaSuccess;
}

// Calls run(block) for the blocks that the settings choose, in their order.
template <typename Run>
void choose_blocks(uint64_t blocks, Run&& run) {
  const auto wanted = static_cast<uint64_t>(settings.blocks);
  if (wanted != 0 && blocks > wanted) {
    if (settings.sample == Sample::kSpread) {
      // By the golden ratio: a fixed step would meet the same tile of every sample.
      for (uint64_t i = 0; i < wanted; ++i) {
        const double turn = (static_cast<double>(i) + 0.5) * 0.6180339887498949;
        run(static_cast<uint64_t>((turn - std::floor(turn)) * static_cast<double>(blocks)));
      }
    } else {
      for (uint64_t i = 0; i < wanted / 3; ++i) {
        run(i);
        run(blocks - 1 - i);
        run(next_random() % blocks);
      }
    }
  } else if (settings.order == Order::kRandom && blocks > 1) {
    uint64_t stride = next_random() % blocks | 1;
    while (std::gcd(stride, blocks) != 1) {
      ++stride;
    }
    uint64_t at = next_random() % blocks;
    for (uint64_t i = 0; i < blocks; ++i, at = (at + stride) % blocks) {
      run(at);
    }
  } else {
    for (uint64_t i = 0; i < blocks; ++i) {
      run(settings.order == Order::kReverse ? blocks - 1 - i : i);
    }
  }
}

}  // namespace

void limit_dynamic_shared(const void* kernel, int bytes) {
  dynamic_shared_limit[kernel] = static_cast<size_t>(bytes);
}

void launch(const void* kernel, dim3 grid, dim3 threads, size_t shared_bytes, const Work& work) {
  records.push_back({kernel, grid, threads, shared_bytes, 0});
  if (const cudaError_t error = check(records.back())) {
    last_error = error;
    return;
  }
  if (settings.dry) {
    return;
  }
  ++entered[kernel];
  if (settings.most_rows != 0 && grid.y > static_cast<unsigned>(settings.most_rows)) {
    grid.y = static_cast<unsigned>(settings.most_rows);
  }
  gridDim = grid;
  blockDim = threads;
  block.count = static_cast<int>(threads.x * threads.y * threads.z);
  block.work = work;
  begin_shared_of_launch(shared_bytes);
  watch::launch_begins();
  const int before = findings();
  const uint64_t across = grid.x;
  choose_blocks(across * grid.y * grid.z, [&](uint64_t at) {
    if (findings() - before >= kEnoughFindings) {
      return;
    }
    blockIdx = {
        static_cast<unsigned>(at % across),
        static_cast<unsigned>(at / across % grid.y),
        static_cast<unsigned>(at / across / grid.y)};
    ++records.back().blocks_run;
    if (!run_block()) {
      last_error = cudaErrorLaunchFailure;
    }
  });
  watch::launch_ends();
  end_shared_of_launch();
}

}  // namespace emulator

extern "C" {

cudaError_t cudaGetLastError() {
  return std::exchange(emulator::last_error, cudaSuccess);
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "an error of the emulator";
}
cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  if (!emulator::settings.dry) {
    emulator::watch::host_writes(at, bytes);
    memset(at, value, bytes);
  }
  return cudaSuccess;
}

void emulator_forget_launches() {
  emulator::records.clear();
  emulator::last_error = cudaSuccess;
}
int emulator_launches() {
  return static_cast<int>(emulator::records.size());
}
// kernel, grid x y z, threads of a block, dynamic shared memory, blocks that ran
void emulator_launch(int index, uint64_t* out) {
  const auto& r = emulator::records[static_cast<size_t>(index)];
  const uint64_t values[] = {
      reinterpret_cast<uint64_t>(r.kernel),
      r.grid.x,
      r.grid.y,
      r.grid.z,
      uint64_t{r.block.x} * r.block.y * r.block.z,
      r.shared_bytes,
      r.blocks_run};
  std::copy(std::begin(values), std::end(values), out);
}
// Addresses of the kernels that ran, at most `most`; returns how many there are.
int emulator_entered(uint64_t* out, int most) {
  int count = 0;
  for (const auto& [kernel, times] : emulator::entered) {
    if (count < most) {
      out[count] = reinterpret_cast<uint64_t>(kernel);
    }
    ++count;
  }
  return count;
}
}
