// The race detector: who wrote and who read every byte last, and whether that came before.
//
// Two accesses of one byte, of which one writes, are in order where the same thread makes both,
// where a barrier of their block lies between, where they are in different launches, or where the
// first one's block published it: a thread that called __threadfence made an atomic operation at an
// address, and a thread of the second one's block made one there afterwards.
#pragma once

#include <functional>

#include "access.h"

namespace emulator {

void begin_race_of_launch();
void begin_race_of_block();
void pass_barrier();
void note_fence();
void publish_and_acquire(uintptr_t address);
void initialise(uintptr_t at, size_t bytes);

// The name of the buffer that the access lies in, which is checked; null where it lies in none.
const std::string* check_buffer(const Access& access);
void check_dynamic_shared(const Access& access, size_t offset);
void check_shared_variable(const Access& access, uintptr_t variable, size_t bytes);

void for_each_buffer(
    const std::function<void(const std::string& name, uintptr_t begin, size_t bytes)>& call);

}  // namespace emulator
