// Exchanges within a warp: shuffles, votes and __syncwarp. A lane waits until all lanes of its mask
// have come, and all must have come to the same call.
#include <cstring>
#include <string>

#include "block.h"
#include "report.h"

namespace emulator {
namespace {

constexpr int kLanes = warpSize;

bool has(unsigned mask, int lane) {
  return (mask >> lane & 1) != 0;
}

bool all_have_come(int first, unsigned mask) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (has(mask, lane) &&
        (first + lane >= block.count || block.threads[first + lane].state != State::kInWarp)) {
      return false;
    }
  }
  return true;
}

void check_same_call(int first, const Thread& mine) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const Thread& other = block.threads[first + lane];
    if (has(mine.call.mask, lane) &&
        (other.call.mask != mine.call.mask || other.call.kind != mine.call.kind ||
         other.call.size != mine.call.size || other.line != mine.line)) {
      report(
          "shuffle: lanes meet with different masks or at different lines, " +
          std::to_string(mine.line) + " and " + std::to_string(other.line) + here());
      return;
    }
  }
}

// The lane that this one reads: its own where CUDA says that it keeps its value.
int source_of(int lane, const WarpCall& call) {
  const int segment = lane / call.width * call.width;
  switch (call.kind) {
    case Exchange::kXor: {
      const int from = lane ^ call.argument;
      return from < segment + call.width ? from : lane;
    }
    case Exchange::kDown: {
      const int from = lane + call.argument;
      return from < segment + call.width ? from : lane;
    }
    case Exchange::kUp: {
      const int from = lane - call.argument;
      return from >= segment ? from : lane;
    }
    case Exchange::kIndex:
      return segment + (call.argument & (call.width - 1));
    default:
      return lane;
  }
}

void complete(int first, unsigned mask) {
  Thread* const lanes = &block.threads[first];
  unsigned votes = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (has(mask, lane) && lanes[lane].call.kind == Exchange::kBallot) {
      int vote;
      memcpy(&vote, lanes[lane].call.in, sizeof vote);
      votes |= static_cast<unsigned>(vote) << lane;
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) {
      continue;
    }
    const WarpCall& call = lanes[lane].call;
    if (call.kind == Exchange::kBallot) {
      memcpy(call.out, &votes, sizeof votes);
      continue;
    }
    int from = source_of(lane, call);
    if (from < 0 || from >= kLanes || !has(mask, from)) {
      report(
          "shuffle: reads a lane that takes no part, line " + std::to_string(lanes[lane].line) +
          here());
      from = lane;
    }
    memcpy(call.out, lanes[from].call.in, call.size);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (has(mask, lane)) {
      lanes[lane].state = State::kReady;
    }
  }
}

}  // namespace

void exchange_in_warp(
    Exchange kind,
    int line,
    unsigned mask,
    const void* in,
    void* out,
    size_t size,
    int argument,
    int width) {
  Thread& mine = block.running();
  const int lane = block.current % kLanes;
  const int first = block.current - lane;
  if (!has(mask, lane)) {
    report(
        "shuffle: the calling lane is not in its own mask, line " + std::to_string(line) + here());
  }
  mine.call = {kind, mask, in, out, size, argument, width};
  mine.line = line;
  mine.state = State::kInWarp;
  if (all_have_come(first, mask)) {
    check_same_call(first, mine);
    complete(first, mask);
  }
  mine.fiber.pause();
}

}  // namespace emulator
