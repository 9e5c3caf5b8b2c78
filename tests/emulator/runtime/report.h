// What the emulator finds wrong with a kernel, as text.
#pragma once

#include <string>

namespace emulator {

// Adds a finding; all are counted, the first few are kept.
void report(const std::string& finding);
int findings();

// Where the kernel is: " [block 1,0,0 thread 7]".
std::string here();

}  // namespace emulator
