// How a strip of the groups of logits that attention_gate standardises is walked, and added up.
//
// A strip is some neighbouring groups (columns, inner > 1) or one group (a row, inner == 1), so that
// the second and third walk over it find it in a cache.
//
//   columns: a vector's lanes are kLanes groups; the walk steps from member to member
//   row:     a vector's lanes are kLanes members; sums end with one over the lanes
//
// Strips are wide, for long runs of memory: narrow ones that fit the second-level cache measured up
// to three times as slow.
#pragma once

#include <algorithm>

#include "../attention_gate.h"
#include "simd.h"

namespace ran::cpu {

constexpr int64_t kColumnVectors = 32;
constexpr int64_t kColumns = kColumnVectors * kLanes;
// Sums of a row that run side by side, to hide the latency of an addition.
constexpr int64_t kRowSums = 4;
// Members summed up before they join the total: a running sum of thousands of float32 loses digits.
constexpr int64_t kChunk = 128;

template <typename V, bool kRow>
struct Sums {
  // One entry a vector of columns. A row's are folded into the first.
  V of[kRow ? kRowSums : kColumnVectors];
};

// Calls f(offset, count, entry) for every vector of the strip: `count` lanes from `offset` on.
// After every kChunk members calls flush().
template <bool kRow, typename F, typename Flush>
RAN_INLINE void walk(const GateShape& s, int64_t width, F&& f, Flush&& flush) {
  if constexpr (kRow) {
    constexpr int64_t kStep = kRowSums * kLanes;
    int64_t i = 0;
    for (int64_t steps = 1; i + kStep <= s.members; i += kStep, ++steps) {
      for (int64_t k = 0; k < kRowSums; ++k) {
        f(i + k * kLanes, kLanes, k);
      }
      if (steps % kChunk == 0) {
        flush();
      }
    }
    for (; i < s.members; i += kLanes) {
      f(i, s.members - i, 0);
    }
  } else {
    // The last vector reaches back over columns that were done before: they come out the same.
    const int64_t last = std::max<int64_t>(0, width - kLanes);
    for (int64_t r = 0; r < s.members; ++r) {
      for (int64_t v = 0; v * kLanes < width; ++v) {
        const int64_t column = std::min(v * kLanes, last);
        f(r * s.inner + column, width - column, v);
      }
      if (r % kChunk == kChunk - 1) {
        flush();
      }
    }
  }
  flush();
}

// For each group, the sum over its members of f(offset, count). Lanes past count do not count.
template <bool kRow, typename V, typename F>
RAN_INLINE Sums<V, kRow> sum_over(const GateShape& s, int64_t width, F&& f) {
  Sums<V, kRow> total{};
  Sums<V, kRow> chunk{};
  const int64_t entries = kRow ? kRowSums : (width + kLanes - 1) / kLanes;
  walk<kRow>(
      s,
      width,
      [&](int64_t offset, int64_t count, int64_t entry) RAN_INLINE_LAMBDA {
        const V value = f(offset, count, entry);
        chunk.of[entry] += count >= kLanes ? value : first_lanes(value, count);
      },
      [&]() RAN_INLINE_LAMBDA {
        for (int64_t e = 0; e < entries; ++e) {
          total.of[e] += chunk.of[e];
          chunk.of[e] = V{};
        }
      });
  if constexpr (kRow) {
    static_assert(kRowSums == 4);
    const V sum = (total.of[0] + total.of[1]) + (total.of[2] + total.of[3]);
    for (V& entry : total.of) {
      entry = splat<V>(horizontal_sum(sum));
    }
  }
  return total;
}

// Replaces the sums of a strip by f of them.
template <bool kRow, typename V, typename F>
RAN_INLINE void map_sums(Sums<V, kRow>& sums, int64_t width, F&& f) {
  if constexpr (kRow) {
    const V value = f(sums.of[0]);
    for (V& entry : sums.of) {
      entry = value;
    }
  } else {
    for (int64_t e = 0; e * kLanes < width; ++e) {
      sums.of[e] = f(sums.of[e]);
    }
  }
}

}  // namespace ran::cpu
