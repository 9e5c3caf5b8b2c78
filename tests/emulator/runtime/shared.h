// Shared memory of the block that runs: dynamic, and the __shared__ variables that were announced.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

namespace emulator {

struct SharedMemory {
  unsigned char* dynamic = nullptr;
  size_t dynamic_bytes = 0;
  std::map<uintptr_t, size_t> variables;  // address and size of every one met so far
};
extern SharedMemory shared_memory;

void begin_shared_of_launch(size_t dynamic_bytes);
void end_shared_of_launch();
// A block begins with garbage, another with each order of threads, so that no result hangs on it.
void begin_shared_of_block();

}  // namespace emulator
