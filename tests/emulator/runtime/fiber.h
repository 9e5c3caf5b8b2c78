// A thread of a kernel: a stack of its own, left wherever the thread has to wait for another.
#pragma once

#include <cstddef>

namespace emulator {

class Fiber {
 public:
  using Entry = void (*)();

  // The next resume() calls `entry`, which must not return.
  void start(Entry entry);
  // Runs the fiber until it pauses. Called by the scheduler alone.
  void resume();
  // Goes back to the scheduler, from within the fiber that runs.
  void pause();

  bool on_stack(const void* address) const {
    const auto* p = static_cast<const char*>(address);
    return p >= stack_ && p < stack_ + kStack;
  }

 private:
  static constexpr size_t kStack = 256 * 1024;

  char* stack_ = nullptr;
  void* context_ = nullptr;   // the stack pointer, or a ucontext_t
  void* asan_stack_ = nullptr;
};

}  // namespace emulator
