// The vector loops of upsample. They are inlined into kernels that choose the instruction set.
#pragma once

#include "stream.h"
#include "upsample_taps.h"

namespace ran::cpu {

// The end of a row that is read and written in whole vectors.
enum class RowEnd {
  kExact,     // nothing past it is touched
  kRunsOver,  // all rows may be read past their end, and what lies behind `to` is written later
};

// to[j] = sum over k of terms[k].weight * rows[terms[k].index * stride + j], plus before[j] where
// `before` is given. `before` may be the same memory as `to`. Only rows of whole vectors are streamed.
template <int K, typename From, typename Before, typename To>
RAN_INLINE void combine_fixed(
    const From* rows,
    int64_t stride,
    const Term<accumulate_t<From>>* terms,
    const Before* before,
    To* to,
    int64_t length,
    RowEnd row_end,
    bool streamed = false) {
  using V = vec_t<From>;
  const From* row[K + 1];
  accumulate_t<From> weight[K + 1];
  for (int k = 0; k < K; ++k) {
    row[k] = rows + terms[k].index * stride;
    weight[k] = terms[k].weight;
  }
  const auto at = [&](int64_t j) RAN_INLINE_LAMBDA {
    V sum{};
    for (int k = 0; k < K; ++k) {
      sum += weight[k] * load(row[k] + j);
    }
    return before ? sum + load(before + j) : sum;
  };
  if (row_end == RowEnd::kRunsOver) {
    for (int64_t j = 0; j < length; j += kLanes) {
      put(to + j, at(j), Full{}, streamed);
    }
  } else if (length < kLanes) {
    V sum{};
    for (int k = 0; k < K; ++k) {
      sum += weight[k] * load_partial(row[k], length);
    }
    store_partial(to, before ? sum + load_partial(before, length) : sum, length);
  } else {
    // The last vector overlaps the one before it, so it is computed while `before` is untouched.
    const V last = at(length - kLanes);
    for (int64_t j = 0; j + kLanes <= length; j += kLanes) {
      put(to + j, at(j), Full{}, streamed);
    }
    put(to + length - kLanes, last, Full{}, streamed);
  }
}

// The most terms that are summed in one pass. Twofold enlargement makes lists of up to 6.
constexpr int kMaxTerms = 6;

// The same for any count of terms, in ascending order. `scratch` has room for a row, may be `to`.
template <typename From, typename To>
RAN_INLINE void combine(
    const From* rows,
    int64_t stride,
    const Term<accumulate_t<From>>* terms,
    int64_t count,
    accumulate_t<From>* scratch,
    To* to,
    int64_t length,
    RowEnd row_end) {
  const accumulate_t<From>* before = nullptr;
  for (; count > kMaxTerms; count -= kMaxTerms, terms += kMaxTerms) {
    combine_fixed<kMaxTerms>(rows, stride, terms, before, scratch, length, row_end);
    before = scratch;
  }
  switch (count) {
    case 0:
      return combine_fixed<0>(rows, stride, terms, before, to, length, row_end);
    case 1:
      return combine_fixed<1>(rows, stride, terms, before, to, length, row_end);
    case 2:
      return combine_fixed<2>(rows, stride, terms, before, to, length, row_end);
    case 3:
      return combine_fixed<3>(rows, stride, terms, before, to, length, row_end);
    case 4:
      return combine_fixed<4>(rows, stride, terms, before, to, length, row_end);
    case 5:
      return combine_fixed<5>(rows, stride, terms, before, to, length, row_end);
    default:
      return combine_fixed<kMaxTerms>(rows, stride, terms, before, to, length, row_end);
  }
}

// A whole row from one element type to another.
template <typename From, typename To>
RAN_INLINE void convert(const From* from, To* to, int64_t length) {
  const Term<accumulate_t<From>> itself{0, 1};
  combine_fixed<1, From, From>(from, 0, &itself, nullptr, to, length, RowEnd::kExact);
}

// ---- along the width, in contiguous images ---------------------------------------------------

// Writes kLanes elements a step: `to` has room for the last one's.
template <typename T>
RAN_INLINE void stretch_by_shuffles(
    const T* row, const std::vector<StretchStep>& steps, float* to) {
  for (const StretchStep& step : steps) {
    const VecF source = load(row + step.base);
    const VecF first = __builtin_shuffle(source, bits<VecI>(step.first));
    const VecF second = __builtin_shuffle(source, bits<VecI>(step.second));
    store(to, first * bits<VecF>(step.first_weight) + second * bits<VecF>(step.second_weight));
    to += kLanes;
  }
}

// One element of a row, which may be a user's at any address.
template <typename A>
RAN_INLINE A load_element(const A* from) {
  A value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

template <typename A>
RAN_INLINE void stretch_by_element(const A* row, const std::vector<Tap<A>>& taps, A* to) {
  for (const Tap<A>& tap : taps) {
    *to++ = load_element(row + tap.first) * tap.first_weight +
        load_element(row + tap.second) * tap.second_weight;
  }
}

template <typename T>
RAN_INLINE void gather_by_shuffles(
    const float* row, const GatherSteps& gather, T* to, int64_t length) {
  const GatherStep* step = gather.steps.data();
  for (int64_t s = 0; s < length; s += kLanes) {
    VecF sum{};
    for (int64_t k = 0; k < gather.depth; ++k, ++step) {
      const VecF near = load(row + step->base);
      const VecF far = load(row + step->base + kLanes);
      const VecF picked = __builtin_shuffle(near, far, bits<VecI>(step->target));
      // A lane whose list is over adds 0 * 0, and not 0 times an infinity that is not its own.
      sum += bits<VecF>(bits<VecI>(picked) & bits<VecI>(step->present)) * bits<VecF>(step->weight);
    }
    if (length < kLanes) {
      store_partial(to, sum, length);
    } else {
      store(to + std::min(s, length - kLanes), sum);
    }
  }
}

template <typename A>
RAN_INLINE void gather_by_element(const A* row, const TapsBySource<A>& taps, A* to) {
  for (size_t s = 0; s + 1 < taps.start.size(); ++s) {
    A sum = 0;
    for (int64_t i = taps.start[s]; i < taps.start[s + 1]; ++i) {
      sum += row[taps.terms[i].index] * taps.terms[i].weight;
    }
    to[s] = sum;
  }
}

}  // namespace ran::cpu
