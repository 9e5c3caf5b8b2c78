// Stores past the caches, for results that would not stay in them.
//
// A plain store first reads the line that it is about to overwrite. Where nobody will find the
// result in a cache, that is a third of the traffic of a copy for nothing.
#pragma once

#include "lanes.h"

namespace ran::cpu {

// Bytes that a call reads and writes from which on it streams its results: the last-level cache that
// a few cores share on today's processors. The size that the system tells is often all of them's.
constexpr int64_t kCacheBytes = int64_t{32} << 20;

constexpr int64_t kStreamAlignment = 16;

// Whether to stream results to `out`, in rows of `row` elements, each row stored from its start on
// and from its end back: both must be aligned. `moved` counts the elements read and written.
template <typename T>
bool streams(const T* out, int64_t row, int64_t moved) {
  return moved * static_cast<int64_t>(sizeof(T)) > kCacheBytes &&
      row * static_cast<int64_t>(sizeof(T)) % kStreamAlignment == 0 &&
      reinterpret_cast<uintptr_t>(out) % kStreamAlignment == 0;
}

// Stores 16-bit elements past the caches. `to` is aligned. Before other threads read it: fence().
template <typename T>
RAN_INLINE void stream_words(T* to, VecU16 words) {
  static_assert(sizeof(T) == 2);
#if defined(__SSE2__) && !defined(__clang__)
  using Words = long long __attribute__((vector_size(16)));
  __builtin_ia32_movntdq(reinterpret_cast<Words*>(to), bits<Words>(words));
#else
  std::memcpy(to, &words, sizeof(words));
#endif
}

// Stores a vector past the caches, likewise.
template <typename T>
RAN_INLINE void stream(T* to, vec_t<T> value) {
#if defined(__SSE2__) && !defined(__clang__)
  // SSE's instructions, because they exist in every copy of a kernel: the processor puts a line
  // together from four of them before it leaves.
  if constexpr (sizeof(T) == 2) {
    stream_words(to, narrow(value, T{}));
  } else if constexpr (sizeof(T) == 4) {
    __builtin_ia32_movntps(to, __builtin_shufflevector(value, value, 0, 1, 2, 3));
    __builtin_ia32_movntps(to + 4, __builtin_shufflevector(value, value, 4, 5, 6, 7));
  } else {
    __builtin_ia32_movntpd(to, __builtin_shufflevector(value, value, 0, 1));
    __builtin_ia32_movntpd(to + 2, __builtin_shufflevector(value, value, 2, 3));
    __builtin_ia32_movntpd(to + 4, __builtin_shufflevector(value, value, 4, 5));
    __builtin_ia32_movntpd(to + 6, __builtin_shufflevector(value, value, 6, 7));
  }
#else
  store(to, value);
#endif
}

// Makes what this thread has streamed visible before anything it stores afterwards.
inline void fence() {
#if defined(__SSE2__)
  __builtin_ia32_sfence();
#endif
}

// stream() where `streamed`, else store().
template <typename T, typename Lanes>
RAN_INLINE void put(T* to, vec_t<T> value, Lanes lanes, bool streamed) {
  if constexpr (!std::is_same_v<Lanes, Short>) {
    if (streamed) {
      return stream(to, value);
    }
  }
  store(to, value, lanes);
}

// put() of a value, and the value as it is stored.
template <typename T, typename Lanes>
RAN_INLINE vec_t<T> put_rounded(T* to, vec_t<T> value, Lanes lanes, bool streamed) {
  if constexpr (sizeof(T) == 2) {
    const VecU16 words = narrow(value, T{});  // once: it is the most of the work
    const vec_t<T> rounded = widen(words, T{});
    if constexpr (std::is_same_v<Lanes, Short>) {
      std::memcpy(to, &words, lanes.count * sizeof(T));
    } else if (streamed) {
      stream_words(to, words);
    } else {
      std::memcpy(to, &words, sizeof(words));
    }
    return rounded;
  } else {
    put(to, value, lanes, streamed);
    return value;
  }
}

// Stores up to `count` lanes, past the caches where `streamed`.
template <typename T>
RAN_INLINE void put_some(T* to, vec_t<T> value, int64_t count, bool streamed) {
  if (streamed && count >= kLanes) {
    stream(to, value);
  } else {
    store_some(to, value, count);
  }
}

}  // namespace ran::cpu
