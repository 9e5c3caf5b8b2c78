#include "traffic.h"

#include <algorithm>
#include <array>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "block.h"

namespace emulator::traffic {
namespace {

constexpr uintptr_t kSector = 32;
constexpr uintptr_t kBanks = 32;
constexpr uintptr_t kBankBytes = 4;

struct Side {
  uint64_t bytes = 0;             // asked for
  uint64_t sectors = 0;           // that the requests touch, each request by itself
  uint64_t requests = 0;          // of a warp
  uint64_t distinct_sectors = 0;  // that a block touches, summed up over the blocks
  std::array<uint64_t, 5> by_width{};  // bytes in accesses of 1, 2, 4, 8 and 16
};
struct Counts {
  Side load;
  Side store;
  uint64_t shared_requests = 0;
  uint64_t wavefronts = 0;  // cycles that shared memory takes for them
};
std::vector<Counts> launches;
bool on = false;

enum class Place : uint8_t { kLoad, kStore, kShared };

// The lanes of a warp that come to an instruction for the same time make one request.
struct Request {
  Place place{};
  unsigned bytes = 0;
  std::vector<std::pair<uintptr_t, int>> lanes;  // address, lane
};
struct Key {
  const void* pc;
  uint32_t who;
  uint32_t time;
  bool operator==(const Key& o) const {
    return pc == o.pc && who == o.who && time == o.time;
  }
};
struct Hash {
  size_t operator()(const Key& k) const {
    const auto pc = reinterpret_cast<uintptr_t>(k.pc);
    return pc * 0x9e3779b97f4a7c15ull ^ (uint64_t{k.time} << 20) ^ k.who;
  }
};
std::unordered_map<Key, Request, Hash> requests;  // of the block that runs, by warp
std::unordered_map<Key, uint32_t, Hash> times;    // how often a thread came to an instruction
std::unordered_set<uintptr_t> loaded, stored;     // sectors

void count(Place place, uintptr_t at, const Access& a) {
  const auto thread = static_cast<uint32_t>(block.current);
  const uint32_t time = times[{a.pc, thread, 0}]++;
  Request& r = requests[{a.pc, thread / warpSize, time}];
  r.place = place;
  r.bytes = static_cast<unsigned>(a.bytes);
  r.lanes.emplace_back(at, static_cast<int>(thread) % warpSize);
}

void add_global(const Request& r, Side& side, std::unordered_set<uintptr_t>& of_block) {
  std::vector<uintptr_t> sectors;
  for (const auto& [at, lane] : r.lanes) {
    for (uintptr_t s = at / kSector; s <= (at + r.bytes - 1) / kSector; ++s) {
      sectors.push_back(s);
    }
  }
  std::sort(sectors.begin(), sectors.end());
  sectors.erase(std::unique(sectors.begin(), sectors.end()), sectors.end());
  const uint64_t bytes = uint64_t{r.bytes} * r.lanes.size();
  side.bytes += bytes;
  side.sectors += sectors.size();
  side.requests += 1;
  const size_t width = r.bytes >= 16 ? 4 : r.bytes >= 8 ? 3 : r.bytes >= 4 ? 2 : r.bytes >= 2;
  side.by_width[width] += bytes;
  of_block.insert(sectors.begin(), sectors.end());
}

// Accesses of 8 and 16 bytes go in halves and quarters of the warp. A wavefront serves one word of
// every bank, to as many lanes as want it.
void add_shared(const Request& r, Counts& counts) {
  const int together = r.bytes <= 4 ? 32 : r.bytes <= 8 ? 16 : 8;
  for (int part = 0; part < warpSize; part += together) {
    std::array<std::vector<uintptr_t>, kBanks> words;
    for (const auto& [at, lane] : r.lanes) {
      if (lane >= part && lane < part + together) {
        for (uintptr_t w = at / kBankBytes; w <= (at + r.bytes - 1) / kBankBytes; ++w) {
          auto& bank = words[w % kBanks];
          if (std::find(bank.begin(), bank.end(), w) == bank.end()) {
            bank.push_back(w);
          }
        }
      }
    }
    size_t most = 0;
    for (const auto& bank : words) {
      most = std::max(most, bank.size());
    }
    counts.wavefronts += most;
    counts.shared_requests += most > 0;
  }
}

}  // namespace

bool counting() {
  return on;
}

void begin_launch() {
  if (on) {
    launches.emplace_back();
  }
}

void end_block() {
  if (!on || launches.empty()) {
    return;
  }
  Counts& counts = launches.back();
  for (const auto& [key, request] : requests) {
    if (request.place == Place::kShared) {
      add_shared(request, counts);
    } else if (request.place == Place::kLoad) {
      add_global(request, counts.load, loaded);
    } else {
      add_global(request, counts.store, stored);
    }
  }
  counts.load.distinct_sectors += loaded.size();
  counts.store.distinct_sectors += stored.size();
  requests.clear();
  times.clear();
  loaded.clear();
  stored.clear();
}

void count_global(const Access& a) {
  count(a.writes() ? Place::kStore : Place::kLoad, a.at, a);
}

void count_shared(const Access& a, uintptr_t offset) {
  count(Place::kShared, offset, a);
}

}  // namespace emulator::traffic

extern "C" {

void emulator_count(int on) {
  emulator::traffic::on = on != 0;
  emulator::traffic::launches.clear();
}
// Of the launch number `index` since emulator_count: for loads, then for stores, bytes, sectors,
// requests, distinct sectors of blocks and bytes by width; then shared requests and wavefronts.
void emulator_counts(int index, uint64_t* out) {
  const auto& counts = emulator::traffic::launches[static_cast<size_t>(index)];
  for (const auto* side : {&counts.load, &counts.store}) {
    *out++ = side->bytes;
    *out++ = side->sectors;
    *out++ = side->requests;
    *out++ = side->distinct_sectors;
    out = std::copy(side->by_width.begin(), side->by_width.end(), out);
  }
  *out++ = counts.shared_requests;
  *out = counts.wavefronts;
}
}
