// Where the emulator tells whoever watches memory what happens. The kinds of build that watch link
// race.cpp and its neighbours, the others watch_nothing.cpp.
#pragma once

#include <cstddef>

namespace emulator::watch {

void launch_begins();
void launch_ends();
void block_begins();
void barrier_passed();

void host_writes(const void* at, size_t bytes);
void stores16(const void* at, const void* pc);
void atomic_at(const void* at, size_t size, const void* pc);
void fence();

}  // namespace emulator::watch
