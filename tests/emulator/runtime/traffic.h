// How a launch reaches memory, counted as the hardware does: by requests of warps.
#pragma once

#include "access.h"

namespace emulator::traffic {

// Whether accesses are counted, instead of checked.
bool counting();
void begin_launch();
void end_block();
void count_global(const Access& access);
void count_shared(const Access& access, uintptr_t offset);

}  // namespace emulator::traffic
