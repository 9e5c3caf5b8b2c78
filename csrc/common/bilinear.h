// Where bilinear interpolation reads, written once for CUDA and the CPU. Both axes are alike, so
// everything here is about one axis. A is the type that is computed in: float or double.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace ran {

// Target i reads first_weight * source[first] + second_weight * source[second].
template <typename A>
struct Tap {
  int first;
  int second;
  A first_weight;
  A second_weight;
};

// One axis of an interpolation from `source` elements to `target` elements.
template <typename A>
struct Axis {
  int source;
  int target;
  bool align_corners;
  A scale;  // distance between neighbouring targets, in source elements

  // align_corners puts the outermost centres on each other, otherwise the outermost edges meet.
  Axis(int64_t from, int64_t to, bool align)
      : source(static_cast<int>(from)),
        target(static_cast<int>(to)),
        align_corners(align),
        scale(
            !align   ? static_cast<A>(from) / to
            : to > 1 ? static_cast<A>(from - 1) / (to - 1)
                     : A(0)) {}
};

// PyTorch's arithmetic step by step, so that the weights agree to the last bits. It keeps a second
// tap of weight 0 where a target falls on a source element: an infinity there makes a NaN.
template <typename A>
RAN_HOST_DEVICE Tap<A> tap_of(const Axis<A>& axis, int target) {
  if (axis.source == axis.target) {
    return {target, target, A(1), A(0)};
  }
  A position = axis.align_corners ? axis.scale * target : axis.scale * (target + A(0.5)) - A(0.5);
  position = position < 0 ? A(0) : position;
  const int last = axis.source - 1;
  const int first = static_cast<int>(position) < last ? static_cast<int>(position) : last;
  A second_weight = position - first;
  second_weight = second_weight < 0 ? A(0) : second_weight > 1 ? A(1) : second_weight;
  return {first, first < last ? first + 1 : first, 1 - second_weight, second_weight};
}

// What a target reads, given the two source elements.
template <typename A>
RAN_HOST_DEVICE A blend(const Tap<A>& tap, A first, A second) {
  return tap.first_weight * first + tap.second_weight * second;
}

// Adds a target's gradient to the sum of a source element it reads: twice where both taps are that
// element, because adding up their weights would hide that 0 times infinity is NaN.
template <typename A>
RAN_HOST_DEVICE void add_target(A& sum, A grad, const Tap<A>& tap, int source) {
  sum += (tap.first == source ? tap.first_weight : tap.second_weight) * grad;
  if (tap.first == tap.second) {
    sum += tap.second_weight * grad;
  }
}

// The first target whose tap.first reaches `source`: taps never go back as targets go on, so the
// targets that read source element s are those from reaching(s - 1) up to reaching(s + 1).
template <typename A>
RAN_HOST_DEVICE int reaching(const Axis<A>& axis, int source) {
  if (source <= 0) {
    return 0;
  }
  if (source >= axis.source) {
    return axis.target;
  }
  // The inverse of tap_of's position finds the place but for rounding; tap_of itself settles it.
  const A position = axis.align_corners ? source / axis.scale
                                        : (source + A(0.5)) / axis.scale - A(0.5);
  int target = position < axis.target ? static_cast<int>(position) : axis.target;
  while (target > 0 && tap_of(axis, target - 1).first >= source) {
    --target;
  }
  while (target < axis.target && tap_of(axis, target).first < source) {
    ++target;
  }
  return target;
}

}  // namespace ran
