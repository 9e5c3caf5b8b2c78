// The functions that code compiled with -fsanitize=thread calls: here they are the emulator's own,
// in the place of the sanitizer's runtime.
#include "access.h"

#define PC __builtin_return_address(0)

namespace {

void tell(void* at, size_t bytes, emulator::Kind kind, bool whole, const void* pc) {
  emulator::on_access({reinterpret_cast<uintptr_t>(at), bytes, kind, whole, pc});
}
constexpr auto kLoad = emulator::Kind::kLoad;
constexpr auto kStore = emulator::Kind::kStore;

}  // namespace

#define ACCESSES(bytes)                                 \
  void __tsan_read##bytes(void* at) {                   \
    tell(at, bytes, kLoad, true, PC);                   \
  }                                                     \
  void __tsan_write##bytes(void* at) {                  \
    tell(at, bytes, kStore, true, PC);                  \
  }                                                     \
  void __tsan_read_write##bytes(void* at) {             \
    tell(at, bytes, kLoad, true, PC);                   \
    tell(at, bytes, kStore, true, PC);                  \
  }                                                     \
  void __tsan_unaligned_read##bytes(void* at) {         \
    tell(at, bytes, kLoad, false, PC);                  \
  }                                                     \
  void __tsan_unaligned_write##bytes(void* at) {        \
    tell(at, bytes, kStore, false, PC);                 \
  }                                                     \
  void __tsan_unaligned_read_write##bytes(void* at) {   \
    tell(at, bytes, kLoad, false, PC);                  \
    tell(at, bytes, kStore, false, PC);                 \
  }

extern "C" {

ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

void __tsan_read_range(void* at, size_t bytes) {
  tell(at, bytes, kLoad, false, PC);
}
void __tsan_write_range(void* at, size_t bytes) {
  tell(at, bytes, kStore, false, PC);
}
// Clang's, for copies that it does not spell out.
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  tell(const_cast<void*>(from), bytes, kLoad, false, PC);
  tell(to, bytes, kStore, false, PC);
  return __builtin_memcpy(to, from, bytes);
}
void* __tsan_memset(void* at, int value, size_t bytes) {
  tell(at, bytes, kStore, false, PC);
  return __builtin_memset(at, value, bytes);
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
