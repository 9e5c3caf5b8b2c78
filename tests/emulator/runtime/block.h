// The block that runs: one at a time, every thread a fiber that waits where a GPU's would.
#pragma once

#include <cuda_runtime.h>

#include <vector>

#include "fiber.h"

namespace emulator {

constexpr int kMostThreads = 1024;

enum class State : uint8_t { kDone, kReady, kAtBarrier, kInWarp };

// What a lane brings to an exchange within its warp.
struct WarpCall {
  Exchange kind;
  unsigned mask;
  const void* in;
  void* out;
  size_t size;
  int argument;
  int width;
};

struct Thread {
  Fiber fiber;
  State state = State::kDone;
  int line = 0;  // where it waits
  WarpCall call{};
};

struct Block {
  std::vector<Thread> threads{static_cast<size_t>(kMostThreads)};
  int count = 0;     // threads of this block
  int current = -1;  // the thread that runs; -1 outside of kernels
  int at_barrier = 0;
  Work work{};

  bool in_kernel() const {
    return current >= 0;
  }
  Thread& running() {
    return threads[current];
  }
};
extern Block block;

// Runs the block at blockIdx to its end. False where its threads wait for each other for ever.
bool run_block();

// The thread that runs waits in this state until somebody makes it ready.
void wait(State state, int line);

}  // namespace emulator
