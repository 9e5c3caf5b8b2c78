// Accesses that kernels make by calls, and the buffers that the tests give them.
#include <cuda_runtime.h>
#include <sys/mman.h>

#include <cstdlib>
#include <string>

#include "report.h"
#include "watch.h"

#if defined(__SANITIZE_ADDRESS__)
#define EMULATOR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMULATOR_ASAN 1
#endif
#endif
#ifdef EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace emulator {
namespace {

template <typename T>
uint64_t apply(Atomic kind, void* at, uint64_t operand, uint64_t compare) {
  T* const p = static_cast<T*>(at);
  const T old = *p;
  const auto value = static_cast<T>(operand);
  switch (kind) {
    case Atomic::kAdd:
      *p = static_cast<T>(static_cast<uint64_t>(old) + operand);
      break;
    case Atomic::kMin:
      *p = std::min(old, value);
      break;
    case Atomic::kMax:
      *p = std::max(old, value);
      break;
    case Atomic::kExchange:
      *p = value;
      break;
    case Atomic::kCompareAndSwap:
      *p = old == static_cast<T>(compare) ? value : old;
      break;
    case Atomic::kIncrement:
      *p = old >= value ? T{0} : static_cast<T>(old + 1);
      break;
    case Atomic::kAnd:
      *p = old & value;
      break;
    case Atomic::kOr:
      *p = old | value;
      break;
  }
  return static_cast<uint64_t>(old);
}

}  // namespace

void store16(void* to, const void* words) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) {
    report("st.global.v4: not 16-byte aligned" + here());
  }
  watch::stores16(to, __builtin_return_address(0));
  memcpy(to, words, 16);
}

uint64_t atomic(
    Atomic kind, void* at, size_t size, bool is_signed, uint64_t operand, uint64_t compare) {
  watch::atomic_at(at, size, __builtin_return_address(0));
  if (size == 8) {
    return is_signed ? apply<int64_t>(kind, at, operand, compare)
                     : apply<uint64_t>(kind, at, operand, compare);
  }
  return is_signed ? apply<int32_t>(kind, at, operand, compare)
                   : apply<uint32_t>(kind, at, operand, compare);
}

void fence() {
  watch::fence();
}

}  // namespace emulator

extern "C" {

// A buffer of exactly these bytes, `offset` past a boundary of 256. What lies around it is known,
// so that emulator_free, which *whole is for, finds a byte that was written there.
constexpr size_t kGuard = 4096;
constexpr unsigned char kGuardByte = 0xa5;

void* emulator_allocate(size_t bytes, size_t offset, void** whole) {
#ifdef EMULATOR_ASAN
  if (posix_memalign(whole, 256, bytes + offset) != 0) {
    abort();
  }
  if (offset != 0) {
    __asan_poison_memory_region(*whole, offset);
  }
  return static_cast<char*>(*whole) + offset;
#else
  if (posix_memalign(whole, 256, bytes + offset + 2 * kGuard) != 0) {
    abort();
  }
  auto* const p = static_cast<unsigned char*>(*whole);
  memset(p, kGuardByte, kGuard + offset);
  memset(p + kGuard + offset + bytes, kGuardByte, kGuard);
  return p + kGuard + offset;
#endif
}
// Whether nothing was written around the buffer.
int emulator_free(void* whole, [[maybe_unused]] size_t bytes, [[maybe_unused]] size_t offset) {
  bool intact = true;
#ifdef EMULATOR_ASAN
  __asan_unpoison_memory_region(whole, offset);
#else
  const auto* const p = static_cast<unsigned char*>(whole);
  for (size_t i = 0; i < kGuard + offset; ++i) {
    intact = intact && p[i] == kGuardByte;
  }
  for (size_t i = 0; i < kGuard; ++i) {
    intact = intact && p[kGuard + offset + bytes + i] == kGuardByte;
  }
#endif
  free(whole);
  return intact;
}

// Zeros that take no memory before they are touched.
void* emulator_reserve(size_t bytes) {
  void* const p = mmap(
      nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : p;
}
void emulator_release(void* at, size_t bytes) {
  munmap(at, bytes);
}
}
