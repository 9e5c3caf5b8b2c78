#include "block.h"

#include <algorithm>
#include <array>
#include <string>

#include "report.h"
#include "settings.h"
#include "shared.h"
#include "watch.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {

Block block;

namespace {

void thread_main() {
  for (;;) {
    block.work.call(block.work.arguments);
    block.running().state = State::kDone;
    block.running().fiber.pause();
  }
}

void start_fibers() {
  for (Thread& thread : block.threads) {
    thread.fiber.start(&thread_main);
  }
}

void resume(int thread) {
  block.current = thread;
  const auto t = static_cast<unsigned>(thread);
  threadIdx = {
      t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
  block.running().fiber.resume();
  block.current = -1;
}

void report_deadlock() {
  std::array<int, 4> waiting{};
  std::array<int, 4> line{};
  for (int t = 0; t < block.count; ++t) {
    const auto state = static_cast<size_t>(block.threads[t].state);
    ++waiting[state];
    line[state] = block.threads[t].line;
  }
  const auto at = [&](State state) {
    const auto s = static_cast<size_t>(state);
    return std::to_string(waiting[s]) + " threads (line " + std::to_string(line[s]) + ")";
  };
  report(
      "deadlock: " + at(State::kAtBarrier) + " at a barrier, " + at(State::kInWarp) +
      " in a warp's exchange, " + std::to_string(waiting[static_cast<size_t>(State::kDone)]) +
      " ended" + here());
}

}  // namespace

void wait(State state, int line) {
  block.running().state = state;
  block.running().line = line;
  block.running().fiber.pause();
}

void barrier(int line) {
  if (++block.at_barrier < block.count) {
    wait(State::kAtBarrier, line);
    return;
  }
  block.at_barrier = 0;
  for (int t = 0; t < block.count; ++t) {
    Thread& other = block.threads[t];
    if (t != block.current && other.line != line) {
      report(
          "__syncthreads: threads meet at different lines, " + std::to_string(line) + " and " +
          std::to_string(other.line) + here());
      break;
    }
  }
  for (int t = 0; t < block.count; ++t) {
    block.threads[t].state = State::kReady;
  }
  watch::barrier_passed();
  // The last to come pauses too: the scheduler's order decides who goes on first.
  block.running().fiber.pause();
}

bool run_block() {
  static bool started = false;
  if (!started) {
    started = true;
    start_fibers();
  }
  begin_shared_of_block();
  watch::block_begins();
  block.at_barrier = 0;
  static std::array<int, kMostThreads> order;
  for (int t = 0; t < block.count; ++t) {
    block.threads[t].state = State::kReady;
    order[t] = settings.order == Order::kReverse ? block.count - 1 - t : t;
  }
  for (;;) {
    if (settings.order == Order::kRandom) {
      for (int t = block.count - 1; t > 0; --t) {
        std::swap(order[t], order[next_random() % (t + 1)]);
      }
    }
    bool any_ran = false;
    int done = 0;
    for (int i = 0; i < block.count; ++i) {
      Thread& thread = block.threads[order[i]];
      if (thread.state == State::kReady) {
        resume(order[i]);
        any_ran = true;
      }
      done += thread.state == State::kDone;
    }
    if (done == block.count) {
      return true;
    }
    if (!any_ran) {
      report_deadlock();
      start_fibers();  // the waiting ones never come back
      return false;
    }
  }
}

}  // namespace emulator
