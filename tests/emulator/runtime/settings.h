// How launches run: set through ctypes by library.py.
#pragma once

#include <cstdint>

namespace emulator {

// A result must not depend on which thread, or which block, comes first.
enum class Order : int { kForward, kReverse, kRandom };

// Which blocks of a grid run, where not all: both ends and random ones, or ones evenly spread.
enum class Sample : int { kEdges, kSpread };

struct Settings {
  Order order = Order::kForward;
  bool dry = false;  // launches are checked and recorded, not run
  int blocks = 0;    // run about that many blocks of a grid; 0: all
  Sample sample = Sample::kEdges;
  int most_rows = 0;  // cut grids to so many rows, whose loops over samples go on; 0: don't
};
extern Settings settings;

uint64_t next_random();

}  // namespace emulator
