#include "attention_gate_groups.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>

#include "attention_gate_walks.h"
#include "stream.h"

namespace ran::cpu {
namespace {

template <typename V>
RAN_INLINE V square_root(V v) {
  for (int i = 0; i < kLanes; ++i) {
    v[i] = std::sqrt(v[i]);
  }
  return v;
}

// Of each group its first member.
template <bool kRow, typename T>
RAN_INLINE Sums<vec_t<T>, kRow> first_members(const T* logits, int64_t width) {
  using V = vec_t<T>;
  Sums<V, kRow> first;
  if constexpr (kRow) {
    for (V& entry : first.of) {
      entry = splat<V>(scalar(logits));
    }
  } else {
    const int64_t last = std::max<int64_t>(0, width - kLanes);
    for (int64_t e = 0; e * kLanes < width; ++e) {
      const int64_t column = std::min(e * kLanes, last);
      first.of[e] = load_some(logits + column, width - column);
    }
  }
  return first;
}

// z = (logit * shrink - center - rest) * scale; see common/gate.h.
template <typename V, Activation kKind, bool kRow>
struct Standard {
  Sums<V, kRow> shrink;
  Sums<V, kRow> center;
  Sums<V, kRow> rest;
  Sums<V, kRow> scale;

  RAN_INLINE V deviation(V logit, int64_t entry) const {
    if constexpr (kKind == Activation::kSpatial) {
      return (logit * shrink.of[entry] - center.of[entry]) - rest.of[entry];
    } else {
      return logit * shrink.of[entry];
    }
  }
  RAN_INLINE V z(V logit, int64_t entry) const {
    return deviation(logit, entry) * scale.of[entry];
  }
};

// Has the groups shrunk whose sums of squares are no numbers. Returns whether there are any.
template <bool kRow, typename V>
RAN_INLINE bool shrink_where_infinite(
    const Sums<V, kRow>& squares, int64_t entries, Sums<V, kRow>& shrink) {
  using A = std::decay_t<decltype(V{}[0])>;
  V zero{};
  for (int64_t e = 0; e < entries; ++e) {
    const V none = squares.of[e] * 0;  // NaN for infinity and NaN
    zero += none;
    shrink.of[e] = none == 0 ? shrink.of[e] : splat<V>(kShrink<A>);
  }
  return !(horizontal_sum(zero) == 0);
}

template <typename T, Activation kKind, bool kRow>
RAN_INLINE Standard<vec_t<T>, kKind, kRow> standardise(
    const GateShape& s, const T* logits, int64_t width) {
  using V = vec_t<T>;
  using A = accumulate_t<T>;
  const int64_t entries = kRow ? kRowSums : (width + kLanes - 1) / kLanes;
  Standard<V, kKind, kRow> z;
  for (V& shrink : z.shrink.of) {
    shrink = splat<V>(A(1));
  }
  for (bool again : {true, false}) {
    if constexpr (kKind == Activation::kSpatial) {
      // Two walks: the difference of sums of squares would cancel.
      z.center = first_members<kRow>(logits, width);
      for (int64_t e = 0; e < entries; ++e) {
        z.center.of[e] *= z.shrink.of[e];
      }
      const Sums<V, kRow> sums = sum_over<kRow, V>(
          s, width, [&](int64_t at, int64_t count, int64_t e) RAN_INLINE_LAMBDA {
            return load_some(logits + at, count) * z.shrink.of[e] - z.center.of[e];
          });
      for (int64_t e = 0; e < entries; ++e) {
        const V mean = sums.of[e] / splat<V>(s.members);
        split_sum(V(z.center.of[e]), mean, z.center.of[e], z.rest.of[e]);
      }
    }
    z.scale = sum_over<kRow, V>(s, width, [&](int64_t at, int64_t count, int64_t e) RAN_INLINE_LAMBDA {
      const V d = z.deviation(load_some(logits + at, count), e);
      return d * d;
    });
    if (!again || !shrink_where_infinite<kRow>(z.scale, entries, z.shrink)) {
      break;
    }
  }
  for (int64_t e = 0; e < entries; ++e) {
    const V squares = z.scale.of[e];
    const V shrink = z.shrink.of[e];
    if constexpr (kKind == Activation::kSpatial) {
      const V eps = splat<V>(kSpatialEps) * shrink * shrink;
      z.scale.of[e] = 1 / square_root(V(squares / splat<V>(s.members) + eps));
    } else {
      const V norm = square_root(squares);
      const V least = splat<V>(kChannelEps) * shrink;
      z.scale.of[e] = 1 / (norm < least ? least : norm);  // written so that a NaN stays one
    }
  }
  return z;
}

// How far the next strip is: the last walk over one fetches it, while it has arithmetic to do.
template <bool kRow>
RAN_INLINE int64_t to_next_strip(const GateShape& s, int64_t width) {
  return kRow ? s.members : width;
}

template <Activation kKind, typename V>
RAN_INLINE V mask_of(V z) {
  return kKind == Activation::kSpatial ? sigmoid(z) : z;
}

template <typename T, Activation kKind, bool kRow>
RAN_SIMD void forward_strip(
    const GateShape& s,
    const T* logits,
    const T* trunk,
    T* out,
    int64_t width,
    accumulate_t<T> offset,
    bool streamed) {
  using V = vec_t<T>;
  const Standard<V, kKind, kRow> standard = standardise<T, kKind, kRow>(s, logits, width);
  const T* next = logits + to_next_strip<kRow>(s, width);
  walk<kRow>(
      s,
      width,
      [&](int64_t at, int64_t count, int64_t e) RAN_INLINE_LAMBDA {
        __builtin_prefetch(next + at);
        const V z = standard.z(load_some(logits + at, count), e);
        const V result =
            gate(mask_of<kKind>(z), load_some(trunk + at, count), splat<V>(offset));
        put_some(out + at, result, count, streamed);
      },
      []() RAN_INLINE_LAMBDA {});
}

template <typename T, Activation kKind, bool kRow>
RAN_SIMD void backward_strip(
    const GateShape& s,
    const T* grad,
    const T* logits,
    const T* trunk,
    T* grad_logits,
    T* grad_trunk,
    int64_t width,
    accumulate_t<T> offset,
    bool streamed) {
  using V = vec_t<T>;
  const auto standard = standardise<T, kKind, kRow>(s, logits, width);
  const int64_t next = to_next_strip<kRow>(s, width);
  const V one = splat<V>(accumulate_t<T>(1));
  const auto z_at = [&](int64_t at, int64_t count, int64_t e) RAN_INLINE_LAMBDA {
    return standard.z(load_some(logits + at, count), e);
  };
  // u = d out / d z
  const auto u_at = [&](int64_t at, int64_t count, V z) RAN_INLINE_LAMBDA {
    const V g = load_some(grad + at, count);
    const V t = load_some(trunk + at, count);
    return kKind == Activation::kSpatial ? gate_grad_sigmoid(g, sigmoid(z), t, one) : g * t;
  };
  Sums<V, kRow> first{};
  if constexpr (kKind == Activation::kSpatial) {
    first = sum_over<kRow, V>(s, width, [&](int64_t at, int64_t count, int64_t e) RAN_INLINE_LAMBDA {
      return u_at(at, count, z_at(at, count, e));
    });
    map_sums<kRow>(first, width, [&](V sum) RAN_INLINE_LAMBDA { return sum / splat<V>(s.members); });
  }
  Sums<V, kRow> second = sum_over<kRow, V>(s, width, [&](int64_t at, int64_t count, int64_t e) RAN_INLINE_LAMBDA {
    const V z = z_at(at, count, e);
    return u_at(at, count, z) * z;
  });
  if constexpr (kKind == Activation::kSpatial) {
    map_sums<kRow>(second, width, [&](V sum) RAN_INLINE_LAMBDA { return sum / splat<V>(s.members); });
  } else {
    // A clamped norm is a constant, and has no part in the gradient.
    const V clamped = splat<V>(accumulate_t<T>(1 / kChannelEps));
    for (int64_t e = 0; e < (kRow ? kRowSums : (width + kLanes - 1) / kLanes); ++e) {
      const V scale = standard.scale.of[e] * standard.shrink.of[e];
      second.of[e] = scale >= clamped ? V{} : second.of[e];
    }
  }
  walk<kRow>(
      s,
      width,
      [&](int64_t at, int64_t count, int64_t e) RAN_INLINE_LAMBDA {
        __builtin_prefetch(logits + next + at);
        __builtin_prefetch(grad + next + at);
        __builtin_prefetch(trunk + next + at);
        const V z = z_at(at, count, e);
        const V u = u_at(at, count, z);
        const V scale = standard.scale.of[e] * standard.shrink.of[e];
        const V to_logits = gate_grad_group(u, z, scale, first.of[e], second.of[e]);
        const V g = load_some(grad + at, count);
        const V to_trunk = gate_grad_trunk(g, mask_of<kKind>(z), splat<V>(offset));
        put_some(grad_logits + at, to_logits, count, streamed);
        put_some(grad_trunk + at, to_trunk, count, streamed);
      },
      []() RAN_INLINE_LAMBDA {});
}

// Calls f(offset of the strip, groups in it) for all strips, shared out among the threads.
template <typename F>
void for_each_strip(const GateShape& s, F&& f) {
  const int64_t strips = (s.inner + kColumns - 1) / kColumns;
  const int64_t columns = padded((s.inner + strips - 1) / strips);  // all about as wide
  const int64_t elements = s.members * std::min(s.inner, columns);
  const int64_t grain = std::max<int64_t>(1, 16384 / elements);
  torch::stable::parallel_for(0, s.outer * strips, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t column = i % strips * columns;
      f(i / strips * s.members * s.inner + column, std::min(columns, s.inner - column));
    }
    fence();
  });
}

template <Activation kActivation, bool kRowValue>
struct Case {
  static constexpr Activation kKind = kActivation;
  static constexpr bool kRow = kRowValue;
};

// Whether to stream results of this shape, of `tensors` that the call moves. Not rows that end in
// part of a vector: that part is stored plainly, and a line stored both ways is slow.
template <typename T>
bool streams_groups(const GateShape& s, const T* out, int64_t tensors) {
  const bool whole = s.inner != 1 || s.members % kLanes == 0;
  return whole && streams(out, s.inner == 1 ? s.members : s.inner, tensors * s.numel());
}

// Calls f with the Case of this shape: the activation, and whether groups are rows.
template <typename F>
void specialise(const GateShape& s, F&& f) {
  const bool row = s.inner == 1;
  if (s.activation == Activation::kChannel) {
    row ? f(Case<Activation::kChannel, true>{}) : f(Case<Activation::kChannel, false>{});
  } else {
    row ? f(Case<Activation::kSpatial, true>{}) : f(Case<Activation::kSpatial, false>{});
  }
}

}  // namespace

template <typename T>
void forward_groups(const GateShape& s, const T* logits, const T* trunk, T* out, bool residual) {
  const bool streamed = streams_groups(s, out, 3);
  specialise(s, [&](auto c) {
    using C = decltype(c);
    for_each_strip(s, [&](int64_t at, int64_t width) {
      forward_strip<T, C::kKind, C::kRow>(
          s, logits + at, trunk + at, out + at, width, residual, streamed);
    });
  });
}

template <typename T>
void backward_groups(
    const GateShape& s,
    const T* grad,
    const T* logits,
    const T* trunk,
    T* grad_logits,
    T* grad_trunk,
    bool residual) {
  const bool streamed = streams_groups(s, grad_logits, 5) && streams_groups(s, grad_trunk, 5);
  specialise(s, [&](auto c) {
    using C = decltype(c);
    for_each_strip(s, [&](int64_t at, int64_t width) {
      backward_strip<T, C::kKind, C::kRow>(
          s,
          grad + at,
          logits + at,
          trunk + at,
          grad_logits + at,
          grad_trunk + at,
          width,
          residual,
          streamed);
    });
  });
}

#define RAN_INSTANTIATE(T)                                                             \
  template void forward_groups(const GateShape&, const T*, const T*, T*, bool);        \
  template void backward_groups(                                                       \
      const GateShape&, const T*, const T*, const T*, T*, T*, bool);
RAN_INSTANTIATE(double)
RAN_INSTANTIATE(float)
RAN_INSTANTIATE(Half)
RAN_INSTANTIATE(BFloat16)
#undef RAN_INSTANTIATE

}  // namespace ran::cpu
