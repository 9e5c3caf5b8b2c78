// Where bilinear interpolation reads, written once for CUDA and the CPU. Both axes are alike, so
// everything here is about one axis. A is the type that is computed in: float or double.
#pragma once

#include <cmath>
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
  A step;   // about the inverse, or 0

  // align_corners puts the outermost centres on each other, otherwise the outermost edges meet.
  Axis(int64_t from, int64_t to, bool align)
      : source(static_cast<int>(from)),
        target(static_cast<int>(to)),
        align_corners(align),
        scale(
            !align   ? static_cast<A>(from) / to
            : to > 1 ? static_cast<A>(from - 1) / (to - 1)
                     : A(0)),
        step(scale > 0 ? 1 / scale : A(0)) {}
};

// PyTorch's arithmetic step by step as its CPU kernels are compiled, so that the weights agree to the
// last bit: a last bit decides whether a tap has weight 0 and makes a NaN of an infinity. Product and
// sum are rounded once; where nothing is added, the fma also keeps compilers from fusing the product
// with the subtraction below. The position's floor is taken in float, of a double too.
template <typename A>
RAN_HOST_DEVICE Tap<A> tap_of(const Axis<A>& axis, int target) {
  if (axis.source == axis.target) {
    return {target, target, A(1), A(0)};
  }
  const A shift = axis.align_corners ? A(0) : A(0.5);
  A position = std::fma(axis.scale, target + shift, -shift);
  position = position < 0 ? A(0) : position;
  const int last = axis.source - 1;
  const float floored = static_cast<float>(position);
  const int first = floored < static_cast<float>(last) ? static_cast<int>(floored) : last;
  A second_weight = position - first;
  second_weight = second_weight < 0 ? A(0) : second_weight > 1 ? A(1) : second_weight;
  return {first, first < last ? first + 1 : first, 1 - second_weight, second_weight};
}

// What a target reads, given the two source elements.
template <typename A>
RAN_HOST_DEVICE A blend(const Tap<A>& tap, A first, A second) {
  return tap.first_weight * first + tap.second_weight * second;
}

// The first target whose tap.first reaches `source`.
template <typename A>
RAN_HOST_DEVICE int reaching(const Axis<A>& axis, int source) {
  if (source <= 0) {
    return 0;
  }
  if (source >= axis.source) {
    return axis.target;
  }
  // The inverse of tap_of's position finds the place but for rounding; tap_of itself settles it.
  const A position =
      axis.align_corners ? source * axis.step : (source + A(0.5)) * axis.step - A(0.5);
  int target = position < axis.target ? static_cast<int>(position) : axis.target;
  while (target > 0 && tap_of(axis, target - 1).first >= source) {
    --target;
  }
  while (target < axis.target && tap_of(axis, target).first < source) {
    ++target;
  }
  return target;
}

// The targets that read a source element are those from first_reader to last_reader, that one
// excluded. Taps never go back as targets go on, and the second tap is the element after the first,
// except where the axis keeps its size: there a target reads its own element alone, and a target too
// many would bring a neighbour's infinity times 0.
template <typename A>
RAN_HOST_DEVICE int first_reader(const Axis<A>& axis, int source) {
  return axis.source == axis.target ? source : reaching(axis, source - 1);
}
template <typename A>
RAN_HOST_DEVICE int last_reader(const Axis<A>& axis, int source) {
  return axis.source == axis.target ? source + 1 : reaching(axis, source + 1);
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

}  // namespace ran
