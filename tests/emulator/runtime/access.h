// Every access of a kernel, as code compiled with -fsanitize=thread announces it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace emulator {

enum class Kind { kLoad, kStore, kAtomic };

struct Access {
  uintptr_t at;
  size_t bytes;
  Kind kind;
  bool whole;      // one instruction, which must be aligned to its size
  const void* pc;  // the instruction, where it lies in the library

  bool writes() const {
    return kind != Kind::kLoad;
  }
};

void on_access(const Access& access);

// " pc +0x1a2b", for addr2line -e LIBRARY.
std::string text_of_pc(const void* pc);

}  // namespace emulator
