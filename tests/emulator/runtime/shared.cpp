#include "shared.h"

#include <cuda_runtime.h>

#include <cstdlib>
#include <set>

#include "settings.h"

namespace emulator {

SharedMemory shared_memory;

namespace {

std::set<uintptr_t> met_in_block;

void fill_with_garbage(void* at, size_t bytes) {
  auto* p = static_cast<unsigned char*>(at);
  switch (settings.order) {
    case Order::kForward:
      memset(p, 0xff, bytes);  // NaN, in every format
      break;
    case Order::kReverse:
      memset(p, 0x7b, bytes);
      break;
    case Order::kRandom:
      for (size_t i = 0; i < bytes; ++i) {
        p[i] = static_cast<unsigned char>(next_random() >> 24);
      }
      break;
  }
}

}  // namespace

void begin_shared_of_launch(size_t dynamic_bytes) {
  // Exactly as large as asked for, so that AddressSanitizer sees a byte too many.
  void* const memory = malloc(dynamic_bytes > 0 ? dynamic_bytes : 1);
  shared_memory.dynamic = static_cast<unsigned char*>(memory);
  shared_memory.dynamic_bytes = dynamic_bytes;
}

void end_shared_of_launch() {
  free(shared_memory.dynamic);
  shared_memory.dynamic = nullptr;
  shared_memory.dynamic_bytes = 0;
}

void begin_shared_of_block() {
  met_in_block.clear();
  fill_with_garbage(shared_memory.dynamic, shared_memory.dynamic_bytes);
}

unsigned char* dynamic_shared() {
  return shared_memory.dynamic;
}

void static_shared(void* at, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(at);
  shared_memory.variables[address] = bytes;
  if (met_in_block.insert(address).second) {
    fill_with_garbage(at, bytes);
  }
}

}  // namespace emulator
