#include "settings.h"

namespace emulator {
namespace {

constexpr uint64_t kSeed = 88172645463325252ull;
uint64_t random_state = kSeed;

}  // namespace

Settings settings;
int approximation = 0;

// Marsaglia's xorshift64.
uint64_t next_random() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

}  // namespace emulator

extern "C" void emulator_set(
    int order, uint64_t seed, int dry, int blocks, int sample, int most_rows) {
  using namespace emulator;
  settings = {static_cast<Order>(order), dry != 0, blocks, static_cast<Sample>(sample), most_rows};
  random_state = seed * 2654435761u + kSeed;
}
extern "C" void emulator_set_approximation(int units) {
  emulator::approximation = units;
}
