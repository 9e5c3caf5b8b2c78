// Small kernels that are wrong on purpose, and right ones beside them: what the emulator must
// notice, and what it must not. test_faults.py says what each is to be told.
#include <cuda_runtime.h>

namespace {

constexpr int kThreads = 64;

// Every thread gives its neighbour a number through shared memory.
template <bool kBarrier>
__global__ void neighbours(const int* in, int* out) {
  __shared__ int numbers[kThreads];
  numbers[threadIdx.x] = in[threadIdx.x];
  if (kBarrier) {
    __syncthreads();
  }
  out[threadIdx.x] = numbers[(threadIdx.x + 1) % kThreads];
}

__global__ void barrier_for_some(const int* in, int* out) {
  if (threadIdx.x < kThreads / 2) {
    __syncthreads();
  }
  out[threadIdx.x] = in[threadIdx.x];
}

__global__ void barriers_apart(const int* in, int* out) {
  if (threadIdx.x < kThreads / 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = in[threadIdx.x];
}

__global__ void lanes_leave_before_a_shuffle(const int* in, int* out) {
  if (threadIdx.x % 2 == 0) {
    return;
  }
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, in[threadIdx.x], 1);
}

__global__ void shuffle_of_the_left_out(const int* in, int* out) {
  if (threadIdx.x % 2 == 0) {
    out[threadIdx.x] = __shfl_xor_sync(0x55555555u, in[threadIdx.x], 1);
  }
}

__global__ void uninitialised(const int*, int* out) {
  __shared__ int numbers[kThreads];
  out[threadIdx.x] = numbers[threadIdx.x];
}

__global__ void past_the_end(const int* in, int* out) {
  out[threadIdx.x] = in[threadIdx.x + 1];
}

__global__ void past_shared(const int* in, int* out) {
  extern __shared__ int numbers[];
  numbers[threadIdx.x + 1] = in[threadIdx.x];
  out[threadIdx.x] = 0;
}

__global__ void into_the_input(const int* in, int* out) {
  const_cast<int*>(in)[threadIdx.x] = 0;
  out[threadIdx.x] = 0;
}

__global__ void misaligned(const int* in, int* out) {
  const int4 pack = reinterpret_cast<const int4*>(in + 1)[threadIdx.x % 4];
  reinterpret_cast<int4*>(out)[threadIdx.x % 4] = pack;
}

__global__ void misaligned_store(const int* in, int* out) {
  out[threadIdx.x] = in[threadIdx.x];
  if (threadIdx.x == 0) {
    int4 pack = {1, 2, 3, 4};
    int* to = out + 1;
    unsigned word[4];
    memcpy(word, &pack, sizeof(word));
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(to), "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3])
                 : "memory");
  }
}

__global__ void blocks_in_one_place(const int* in, int* out) {
  out[threadIdx.x] = in[threadIdx.x] + blockIdx.x;
}

// The last block to come adds up what all blocks wrote.
template <bool kFence>
__global__ void last_block(const int* in, int* out) {
  __shared__ bool last;
  out[1 + blockIdx.x * kThreads + threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) {
    if (kFence) {
      __threadfence();
    }
    last = atomicAdd(out, 1) == static_cast<int>(gridDim.x) - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    int sum = 0;
    for (int i = 0; i < static_cast<int>(gridDim.x) * kThreads; ++i) {
      sum += out[1 + i];
    }
    out[1] = sum;
  }
}

// Lanes `stride` words apart in shared memory.
__global__ void strided(const int* in, int* out, int stride) {
  extern __shared__ int numbers[];
  numbers[threadIdx.x * stride] = in[threadIdx.x];
  out[threadIdx.x] = numbers[threadIdx.x * stride];
}

// Lanes `stride` integers apart in global memory.
__global__ void gathered(const int* in, int* out, int stride) {
  out[threadIdx.x] = in[threadIdx.x * stride];
}

template <typename T>
__global__ void packs(const int* in, int* out) {
  const T pack = reinterpret_cast<const T*>(in)[threadIdx.x];
  reinterpret_cast<T*>(out)[threadIdx.x] = pack;
}

}  // namespace

#define FAULT(name, ...)                                \
  extern "C" void fault_##name(const int* in, int* out) { \
    __VA_ARGS__;                                        \
  }

FAULT(none, neighbours<true><<<1, kThreads>>>(in, out))
FAULT(no_barrier, neighbours<false><<<1, kThreads>>>(in, out))
FAULT(barrier_for_some, barrier_for_some<<<1, kThreads>>>(in, out))
FAULT(barriers_apart, barriers_apart<<<1, kThreads>>>(in, out))
FAULT(lanes_leave, lanes_leave_before_a_shuffle<<<1, kThreads>>>(in, out))
FAULT(left_out, shuffle_of_the_left_out<<<1, kThreads>>>(in, out))
FAULT(uninitialised, uninitialised<<<1, kThreads>>>(in, out))
FAULT(past_the_end, past_the_end<<<1, kThreads>>>(in, out))
FAULT(past_shared, past_shared<<<1, kThreads, 4 * kThreads>>>(in, out))
FAULT(into_the_input, into_the_input<<<1, kThreads>>>(in, out))
FAULT(misaligned, misaligned<<<1, 32>>>(in, out))
FAULT(misaligned_store, misaligned_store<<<1, kThreads>>>(in, out))
FAULT(blocks_in_one_place, blocks_in_one_place<<<2, kThreads>>>(in, out))
FAULT(last_block, last_block<true><<<3, kThreads>>>(in, out))
FAULT(last_block_without_a_fence, last_block<false><<<3, kThreads>>>(in, out))
FAULT(too_many_threads, neighbours<true><<<1, 2048>>>(in, out))
FAULT(too_many_rows, neighbours<true><<<dim3(1, 65536), kThreads>>>(in, out))
FAULT(too_much_shared, past_shared<<<1, kThreads, 64 * 1024>>>(in, out))
FAULT(half_a_warp, blocks_in_one_place<<<1, 48>>>(in, out))

FAULT(no_conflict, strided<<<1, 32, 4 * 32 * 32>>>(in, out, 1))
FAULT(two_conflicts, strided<<<1, 32, 4 * 32 * 32>>>(in, out, 2))
FAULT(all_conflict, strided<<<1, 32, 4 * 32 * 32>>>(in, out, 32))
FAULT(coalesced, gathered<<<1, 32>>>(in, out, 1))
FAULT(every_eighth, gathered<<<1, 32>>>(in, out, 8))
FAULT(packs_of_8, packs<int2><<<1, 32>>>(in, out))
FAULT(packs_of_16, packs<int4><<<1, 32>>>(in, out))
