// The builds without -fsanitize=thread see no accesses, so there is nothing to watch.
#include "watch.h"

namespace emulator::watch {

void launch_begins() {}
void launch_ends() {}
void block_begins() {}
void barrier_passed() {}
void host_writes(const void*, size_t) {}
void stores16(const void*, const void*) {}
void atomic_at(const void*, size_t, const void*) {}
void fence() {}

}  // namespace emulator::watch
