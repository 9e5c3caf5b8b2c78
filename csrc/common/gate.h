// The arithmetic of attention_gate, written once for CUDA's scalars and the CPU's vectors.
#pragma once

#include "dtype.h"

namespace ran {

// How the mask M is made from the logits: Wang et al., CVPR 2017, equations 4 to 6. "channel" and
// "spatial" standardise a group of logits first, z = (logit - mean) * scale:
//   kMixed    M = sigmoid(logit)
//   kChannel  M = z,           mean = 0, scale = 1 / max(L2 norm, 1e-12); a group is a position
//   kSpatial  M = sigmoid(z),  scale = 1 / sqrt(variance + 1e-5); a group is a map
enum class Activation : int { kMixed, kChannel, kSpatial };

constexpr double kChannelEps = 1e-12;
constexpr double kSpatialEps = 1e-5;

// How every backend standardises a group. Up to 316 times a rounding of the mean would be in z, so
// it is kept as two numbers, center + rest, from deviations from the group's first member: a map
// of equal logits has z = 0 exactly. Where the sum of squares overflows, both sums are made again
// of logits times `shrink`, a power of two that leaves room for 2^32 squares of any logit:
//   z = (logit * shrink - center - rest) * scale,   d z / d logit of the member itself: shrink * scale
template <typename A>
constexpr A kShrink = sizeof(A) == 4 ? A(0x1p-90) : A(0x1p-640);

// Splits shift + mean into a rounded sum and what rounding lost (Knuth's TwoSum).
template <typename V>
RAN_HOST_DEVICE void split_sum(V shift, V mean, V& center, V& rest) {
  center = shift + mean;
  const V part = center - shift;
  rest = (shift - (center - part)) + (mean - part);
}

// out = (offset + M) * T, where offset is 1 with attention residual learning and 0 without it.
// Wang et al., CVPR 2017, equations 3 and 1.
template <typename V>
RAN_HOST_DEVICE V gate(V mask, V trunk, V offset) {
  return (offset + mask) * trunk;
}

// d out / d T = offset + M
template <typename V>
RAN_HOST_DEVICE V gate_grad_trunk(V grad, V mask, V offset) {
  return grad * (offset + mask);
}

// d out / d z = T * M * (1 - M) for M = sigmoid(z)
template <typename V>
RAN_HOST_DEVICE V gate_grad_sigmoid(V grad, V mask, V trunk, V one) {
  return grad * trunk * (mask * (one - mask));
}

// The group's part in the gradient. With u = d out / d z of each member and R members,
//   d out / d logit = shrink * scale * (u - first - z * second)
//   kChannel  first = 0,           second = sum(u z), or 0 where the norm was clamped
//   kSpatial  first = sum(u) / R,  second = sum(u z) / R
template <typename V>
RAN_HOST_DEVICE V gate_grad_group(V u, V z, V scale, V first, V second) {
  return scale * (u - first - z * second);
}

}  // namespace ran
