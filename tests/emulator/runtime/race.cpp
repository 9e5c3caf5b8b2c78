#include "race.h"

#include <unordered_map>
#include <vector>

#include "block.h"
#include "report.h"
#include "shared.h"

namespace emulator {
namespace {

constexpr uint16_t kManyThreads = 0xffff;

// Launches, blocks of a launch in their order of running, and stretches between barriers, counted.
uint32_t launch_number = 0;
uint32_t block_number = 0;
uint32_t epoch = 0;
uint32_t first_epoch = 0;  // of the block that runs, by which it differs from every other

// The last access of its kind to a byte.
struct Mark {
  uint32_t launch = 0;
  uint32_t block = 0;
  uint32_t epoch = 0;
  uint16_t thread = 0;
};
struct Byte {
  Mark write;
  Mark read;
  bool read_by_blocks = false;  // by more than one, of which `read` knows the last
  bool atomic = false;          // the last write
  bool initialised = false;
};
using Bytes = std::vector<Byte>;

struct Buffer {
  uintptr_t begin;
  uintptr_t end;
  bool writable;
  std::string name;
  Bytes bytes;
};
std::vector<Buffer> buffers;

struct SharedVariable {
  Bytes bytes;
  uint32_t block = 0;  // whose bytes they are, by its first epoch: garbage for the next
};
Bytes dynamic_bytes;
std::unordered_map<uintptr_t, SharedVariable> shared_variables;

// ---- what atomic operations order -------------------------------------------------------------

// Of every address of this launch, the blocks that published there, and until which epoch.
std::unordered_map<uintptr_t, std::unordered_map<uint32_t, Mark>> published;
struct Acquired {
  uintptr_t address;
  Mark by;
};
std::vector<Acquired> acquired;  // by the block that runs
std::vector<bool> fenced;        // its threads

bool in_order_within_block(const Mark& mark) {
  return mark.thread == block.current || mark.epoch < epoch;
}

bool was_published(const Mark& mark) {
  for (const Acquired& a : acquired) {
    if (!in_order_within_block(a.by)) {
      continue;
    }
    const auto& blocks = published[a.address];
    const auto found = blocks.find(mark.block);
    if (found != blocks.end() &&
        (mark.epoch < found->second.epoch ||
         (mark.epoch == found->second.epoch && mark.thread == found->second.thread))) {
      return true;
    }
  }
  return false;
}

bool came_before(const Mark& mark) {
  if (mark.launch != launch_number) {
    return true;
  }
  return mark.block == block_number ? in_order_within_block(mark) : was_published(mark);
}

Mark now() {
  return {launch_number, block_number, epoch, static_cast<uint16_t>(block.current)};
}

// ---- a byte -----------------------------------------------------------------------------------

void note_read(Byte& b) {
  const bool same_block = b.read.launch == launch_number && b.read.block == block_number;
  if (b.read.launch != launch_number) {
    b.read_by_blocks = false;
  } else if (!same_block) {
    b.read_by_blocks = true;
  }
  const bool beside_others =
      same_block && b.read.epoch == epoch && b.read.thread != block.current;
  b.read = now();
  if (beside_others) {
    b.read.thread = kManyThreads;
  }
}

// What is wrong with this access of a byte, or nothing.
std::string fault(const Byte& b, const Access& a) {
  if (!came_before(b.write) && !(b.atomic && a.kind == Kind::kAtomic)) {
    return std::string("race: ") + (a.writes() ? "write" : "read") +
           " after another thread's write of ";
  }
  if (a.writes() && a.kind != Kind::kAtomic && (!came_before(b.read) ||
      (b.read_by_blocks && b.read.launch == launch_number))) {
    return "race: write after another thread's read of ";
  }
  if (a.kind != Kind::kStore && !b.initialised) {
    return "uninitialised read of ";
  }
  return "";
}

void check(Byte* bytes, const Access& a, const std::string& name, size_t offset) {
  for (size_t i = 0; i < a.bytes; ++i) {
    Byte& b = bytes[i];
    if (const std::string what = fault(b, a); !what.empty()) {
      std::string other;
      if (what.find("write of") != std::string::npos) {
        other = ", the other: block " + std::to_string(b.write.block) +
                " in order of running, thread " + std::to_string(b.write.thread);
      }
      report(what + name + " + " + std::to_string(offset + i) + here() + other + text_of_pc(a.pc));
      return;
    }
    if (a.writes()) {
      b.write = now();
      b.atomic = a.kind == Kind::kAtomic;
      b.initialised = true;
    } else {
      note_read(b);
    }
  }
}

}  // namespace

void begin_race_of_launch() {
  ++launch_number;
  block_number = 0;
  published.clear();
}

void begin_race_of_block() {
  ++block_number;
  first_epoch = ++epoch;
  acquired.clear();
  fenced.assign(static_cast<size_t>(kMostThreads), false);
  dynamic_bytes.assign(shared_memory.dynamic_bytes, Byte{});
}

void pass_barrier() {
  ++epoch;
}

void note_fence() {
  fenced[block.current] = true;
}

// Without a fence before it, an atomic operation orders nothing but itself.
void publish_and_acquire(uintptr_t address) {
  if (fenced[block.current]) {
    published[address][block_number] = now();
  }
  acquired.push_back({address, now()});
}

void initialise(uintptr_t at, size_t bytes) {
  for (Buffer& b : buffers) {
    if (at >= b.begin && at + bytes <= b.end) {
      for (size_t i = 0; i < bytes; ++i) {
        b.bytes[at - b.begin + i].initialised = true;
      }
    }
  }
}

const std::string* check_buffer(const Access& a) {
  for (Buffer& b : buffers) {
    if (a.at >= b.begin && a.at + a.bytes <= b.end) {
      if (a.writes() && !b.writable) {
        report("write to the input " + b.name + here() + text_of_pc(a.pc));
      }
      check(&b.bytes[a.at - b.begin], a, b.name, a.at - b.begin);
      return &b.name;
    }
  }
  return nullptr;
}

void check_dynamic_shared(const Access& a, size_t offset) {
  check(&dynamic_bytes[offset], a, "shared", offset);
}

void check_shared_variable(const Access& a, uintptr_t variable, size_t bytes) {
  SharedVariable& s = shared_variables[variable];
  if (s.block != first_epoch || s.bytes.size() != bytes) {
    s.bytes.assign(bytes, Byte{});
    s.block = first_epoch;
  }
  check(&s.bytes[a.at - variable], a, "static shared", a.at - variable);
}

void for_each_buffer(
    const std::function<void(const std::string& name, uintptr_t begin, size_t bytes)>& call) {
  for (const Buffer& b : buffers) {
    call(b.name, b.begin, b.end - b.begin);
  }
}

}  // namespace emulator

extern "C" {

// Announces a buffer; whatever else a kernel reaches in global memory is out of bounds.
void emulator_watch(void* at, size_t bytes, int initialised, int writable, const char* name) {
  using namespace emulator;
  const auto begin = reinterpret_cast<uintptr_t>(at);
  Byte byte;
  byte.initialised = initialised != 0;
  buffers.push_back({begin, begin + bytes, writable != 0, name, Bytes(bytes, byte)});
}
// Bytes of the buffer announced as number `index` that were never written.
uint64_t emulator_unwritten(int index) {
  uint64_t count = 0;
  for (const auto& byte : emulator::buffers[static_cast<size_t>(index)].bytes) {
    count += !byte.initialised;
  }
  return count;
}
void emulator_forget_buffers() {
  emulator::buffers.clear();
}
}
