#include "fiber.h"

#include <sys/mman.h>

#include <cstdlib>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

// AddressSanitizer must be told that the stack changes. g++ and Clang say in different ways that it
// is there.
#if defined(__SANITIZE_ADDRESS__)
#define EMULATOR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMULATOR_ASAN 1
#endif
#endif
#ifdef EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {
namespace {

const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;
void* scheduler_asan_stack = nullptr;
Fiber::Entry entry_of_new = nullptr;

void leave_stack(
    [[maybe_unused]] void** keep, [[maybe_unused]] const void* to, [[maybe_unused]] size_t bytes) {
#ifdef EMULATOR_ASAN
  __sanitizer_start_switch_fiber(keep, to, bytes);
#endif
}
void enter_stack(
    [[maybe_unused]] void* kept,
    [[maybe_unused]] const void** from,
    [[maybe_unused]] size_t* bytes) {
#ifdef EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(kept, from, bytes);
#endif
}

void run_entry() {
  enter_stack(nullptr, &scheduler_stack, &scheduler_stack_bytes);
  entry_of_new();
  abort();  // an entry does not return
}

}  // namespace

// ---- switching stacks -------------------------------------------------------------------------
#if defined(__x86_64__)

// Keeps what the calling convention says a function must keep, on the stack that is left. A system
// call for every switch, as swapcontext makes, would take most of the emulator's time.
extern "C" void emulator_switch_stack(void** from, void* to);
asm(R"(
.text
.type emulator_switch_stack,@function
emulator_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch_stack,.-emulator_switch_stack
)");

namespace {

void* scheduler = nullptr;

void* new_context(char* stack, size_t bytes, void*) {
  constexpr int kKeptRegisters = 6;
  auto** top = reinterpret_cast<void**>(stack + bytes - 64);
  *--top = nullptr;  // the return address, which keeps the stack aligned at entry
  *--top = reinterpret_cast<void*>(&run_entry);
  for (int i = 0; i < kKeptRegisters; ++i) {
    *--top = nullptr;
  }
  return top;
}
void switch_to(void*& context) {
  emulator_switch_stack(&scheduler, context);
}
void switch_back(void*& context) {
  emulator_switch_stack(&context, scheduler);
}

}  // namespace
#else

namespace {

ucontext_t scheduler;

void* new_context(char* stack, size_t bytes, void* old) {
  auto* context = old ? static_cast<ucontext_t*>(old) : new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = bytes;
  context->uc_link = nullptr;
  makecontext(context, &run_entry, 0);
  return context;
}
void switch_to(void*& context) {
  swapcontext(&scheduler, static_cast<ucontext_t*>(context));
}
void switch_back(void*& context) {
  swapcontext(static_cast<ucontext_t*>(context), &scheduler);
}

}  // namespace
#endif

void Fiber::start(Entry entry) {
  entry_of_new = entry;
  if (stack_ == nullptr) {
    void* memory =
        mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      abort();
    }
    stack_ = static_cast<char*>(memory);
  }
#ifdef EMULATOR_ASAN
  __asan_unpoison_memory_region(stack_, kStack);
#endif
  context_ = new_context(stack_, kStack, context_);
  asan_stack_ = nullptr;
}

void Fiber::resume() {
  leave_stack(&scheduler_asan_stack, stack_, kStack);
  switch_to(context_);
  enter_stack(scheduler_asan_stack, nullptr, nullptr);
}

void Fiber::pause() {
  leave_stack(&asan_stack_, scheduler_stack, scheduler_stack_bytes);
  switch_back(context_);
  enter_stack(asan_stack_, &scheduler_stack, &scheduler_stack_bytes);
}

}  // namespace emulator
