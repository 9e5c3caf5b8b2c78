// Tables of bilinear taps, made once a call: by target for the forward pass, by source for the
// backward pass, and both again in the form of lane shuffles for rows of contiguous images.
#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "../common/bilinear.h"
#include "simd.h"

namespace ran::cpu {

template <typename A>
std::vector<Tap<A>> taps_by_target(const Axis<A>& axis) {
  std::vector<Tap<A>> taps;
  taps.reserve(axis.target);
  for (int i = 0; i < axis.target; ++i) {
    taps.push_back(tap_of(axis, i));
  }
  return taps;
}

// One term of a weighted sum: an element, or a whole row of them, by its index.
template <typename A>
struct Term {
  int64_t index;
  A weight;
};

// For every source element the targets that read it, in ascending order. A target that reads it
// twice stands there twice: adding up the weights would hide that 0 times infinity is NaN.
template <typename A>
struct TapsBySource {
  std::vector<Term<A>> terms;
  std::vector<int64_t> start;  // those of source s are terms[start[s]] to terms[start[s + 1]]

  explicit TapsBySource(const Axis<A>& axis) : start(axis.source + 1) {
    const std::vector<Tap<A>> taps = taps_by_target(axis);
    for (const Tap<A>& tap : taps) {
      ++start[tap.first + 1];
      ++start[tap.second + 1];
    }
    for (int s = 0; s < axis.source; ++s) {
      start[s + 1] += start[s];
    }
    terms.resize(2 * taps.size());
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int i = 0; i < axis.target; ++i) {
      terms[next[taps[i].first]++] = {i, taps[i].first_weight};
      terms[next[taps[i].second]++] = {i, taps[i].second_weight};
    }
  }
};

// A vector in a table: the compiler's own vectors ask for more alignment than a std::vector gives.
template <typename E>
using Lanes = std::array<E, kLanes>;

// A row is stretched kLanes targets at a time where the source elements they read lie within one
// vector: that and two shuffles bring every lane its two taps. Enlargement by 7 / 6 or more fits.
struct StretchStep {
  int base;  // the vector begins at this source element
  Lanes<int32_t> first;
  Lanes<int32_t> second;
  Lanes<float> first_weight;
  Lanes<float> second_weight;
};

// The steps of a row, or none where some vector does not fit. Lanes past the row's end repeat its
// last target.
inline std::vector<StretchStep> stretch_steps(const std::vector<Tap<float>>& taps, int source) {
  std::vector<StretchStep> steps;
  const int64_t targets = taps.size();
  for (int64_t i = 0; i < targets; i += kLanes) {
    StretchStep step;
    step.base = std::min(taps[i].first, std::max(0, source - kLanes));
    for (int lane = 0; lane < kLanes; ++lane) {
      const Tap<float>& tap = taps[std::min(i + lane, targets - 1)];
      if (tap.second >= step.base + kLanes) {
        return {};
      }
      step.first[lane] = tap.first - step.base;
      step.second[lane] = tap.second - step.base;
      step.first_weight[lane] = tap.first_weight;
      step.second_weight[lane] = tap.second_weight;
    }
    steps.push_back(step);
  }
  return steps;
}

// A row of gradients is gathered kLanes source elements at a time: step after step adds the next
// target of every lane's list. It fits where those targets lie within two vectors.
struct GatherStep {
  int base;  // the two vectors begin at this target
  Lanes<int32_t> target;
  Lanes<int32_t> present;  // all bits set where the lane's list reaches this far
  Lanes<float> weight;
};

// `depth` steps for each vector of source elements, the last of which overlaps the one before it in
// rows of kLanes elements or more.
struct GatherSteps {
  int64_t depth = 0;
  std::vector<GatherStep> steps;  // empty where some step does not fit

  GatherSteps() = default;
  explicit GatherSteps(const TapsBySource<float>& taps) {
    const int64_t sources = taps.start.size() - 1;
    for (int64_t s = 0; s < sources; ++s) {
      depth = std::max(depth, taps.start[s + 1] - taps.start[s]);
    }
    for (int64_t s = 0; s < sources; s += kLanes) {
      const int64_t begin = std::max<int64_t>(0, std::min(s, sources - kLanes));
      for (int64_t k = 0; k < depth; ++k) {
        if (!add_step(taps, begin, std::min(begin + kLanes, sources), k)) {
          steps.clear();
          return;
        }
      }
    }
  }

 private:
  bool add_step(const TapsBySource<float>& taps, int64_t begin, int64_t end, int64_t k) {
    GatherStep step{};
    int lowest = std::numeric_limits<int>::max();
    int highest = 0;
    for (int64_t s = begin; s < end; ++s) {
      const int64_t index = taps.start[s] + k;
      if (index < taps.start[s + 1]) {
        const int target = static_cast<int>(taps.terms[index].index);
        step.target[s - begin] = target;
        step.present[s - begin] = -1;
        step.weight[s - begin] = taps.terms[index].weight;
        lowest = std::min(lowest, target);
        highest = std::max(highest, target);
      }
    }
    step.base = std::min(lowest, highest);
    for (int lane = 0; lane < kLanes; ++lane) {
      step.target[lane] = (step.target[lane] - step.base) & step.present[lane];
    }
    steps.push_back(step);
    return highest < step.base + 2 * kLanes;
  }
};

}  // namespace ran::cpu
