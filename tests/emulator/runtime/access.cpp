// Sorts accesses by what they reach: a buffer, shared memory, or what is no kernel's business.
#include "access.h"

#include <link.h>

#include <algorithm>
#include <cstdio>

#include "block.h"
#include "race.h"
#include "report.h"
#include "shared.h"
#include "traffic.h"
#include "watch.h"

namespace emulator {
namespace {

// The library itself: constants and threadIdx lie in it, and __shared__ variables.
struct Image {
  uintptr_t begin = 0;
  uintptr_t end = 0;

  Image() {
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* self) {
          return static_cast<Image*>(self)->take(*info) ? 1 : 0;
        },
        this);
  }
  bool take(const dl_phdr_info& info) {
    uintptr_t low = UINTPTR_MAX;
    uintptr_t high = 0;
    for (int i = 0; i < info.dlpi_phnum; ++i) {
      const auto& header = info.dlpi_phdr[i];
      if (header.p_type == PT_LOAD) {
        low = std::min<uintptr_t>(low, info.dlpi_addr + header.p_vaddr);
        high = std::max<uintptr_t>(high, info.dlpi_addr + header.p_vaddr + header.p_memsz);
      }
    }
    const auto inside = reinterpret_cast<uintptr_t>(&block);
    if (low > inside || inside >= high) {
      return false;
    }
    begin = low;
    end = high;
    return true;
  }
};

const Image& image() {
  static const Image found;
  return found;
}

bool in_arguments(const Access& a) {
  constexpr uintptr_t kMostArguments = 4096;
  const auto begin = reinterpret_cast<uintptr_t>(block.work.arguments);
  return !a.writes() && a.at >= begin && a.at < begin + kMostArguments;
}

const std::pair<const uintptr_t, size_t>* shared_variable(const Access& a) {
  auto after = shared_memory.variables.upper_bound(a.at);
  if (after == shared_memory.variables.begin()) {
    return nullptr;
  }
  --after;
  return a.at + a.bytes <= after->first + after->second ? &*after : nullptr;
}

void report_out_of_bounds(const Access& a) {
  constexpr uintptr_t kNear = 4096;
  std::string near;
  const auto mention = [&](const std::string& name, uintptr_t begin, size_t bytes) {
    if (a.at + kNear >= begin && a.at < begin + bytes + kNear) {
      near += ", " + name + " of " + std::to_string(bytes) + " bytes + " +
              std::to_string(static_cast<int64_t>(a.at - begin));
    }
  };
  for_each_buffer(mention);
  mention(
      "shared", reinterpret_cast<uintptr_t>(shared_memory.dynamic), shared_memory.dynamic_bytes);
  report(
      std::string("out of bounds: ") + (a.writes() ? "write" : "read") + " of " +
      std::to_string(a.bytes) + " bytes" + near + here() + text_of_pc(a.pc));
}

void check_alignment(const Access& a, const std::string& name) {
  if (a.whole && a.at % a.bytes != 0) {
    report("misaligned access of " + name + here() + text_of_pc(a.pc));
  }
}

}  // namespace

std::string text_of_pc(const void* pc) {
  char text[40];
  snprintf(text, sizeof text, " pc +0x%zx", reinterpret_cast<uintptr_t>(pc) - image().begin);
  return text;
}

void on_access(const Access& a) {
  if (!block.in_kernel() || block.running().fiber.on_stack(reinterpret_cast<void*>(a.at))) {
    return;
  }
  const auto dynamic = reinterpret_cast<uintptr_t>(shared_memory.dynamic);
  if (a.at >= dynamic && a.at + a.bytes <= dynamic + shared_memory.dynamic_bytes) {
    if (traffic::counting()) {
      traffic::count_shared(a, a.at - dynamic);
    } else {
      check_alignment(a, "shared memory");
      check_dynamic_shared(a, a.at - dynamic);
    }
    return;
  }
  if (const auto* variable = shared_variable(a)) {
    if (traffic::counting()) {
      traffic::count_shared(a, a.at);
    } else {
      check_shared_variable(a, variable->first, variable->second);
    }
    return;
  }
  if ((a.at >= image().begin && a.at < image().end) || in_arguments(a)) {
    return;
  }
  if (traffic::counting()) {
    traffic::count_global(a);
  } else if (const std::string* name = check_buffer(a)) {
    check_alignment(a, *name);
  } else {
    report_out_of_bounds(a);
  }
}

namespace watch {

void launch_begins() {
  begin_race_of_launch();
  traffic::begin_launch();
}
void launch_ends() {
  traffic::end_block();
}
void block_begins() {
  traffic::end_block();
  begin_race_of_block();
}
void barrier_passed() {
  pass_barrier();
}
void host_writes(const void* at, size_t bytes) {
  initialise(reinterpret_cast<uintptr_t>(at), bytes);
}
void stores16(const void* at, const void* pc) {
  on_access({reinterpret_cast<uintptr_t>(at), 16, Kind::kStore, true, pc});
}
void atomic_at(const void* at, size_t size, const void* pc) {
  const auto address = reinterpret_cast<uintptr_t>(at);
  on_access({address, size, Kind::kAtomic, true, pc});
  publish_and_acquire(address);
}
void fence() {
  note_fence();
}

}  // namespace watch
}  // namespace emulator
