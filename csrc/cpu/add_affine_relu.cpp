// sum = a + b, out = max(scale sum + shift, 0) in one pass.
#include "../add_affine_relu.h"

#include "lanes.h"
#include "share.h"

namespace ran::cpu {
namespace {

// NaN passes.
template <typename V>
RAN_INLINE V affine_relu(V sum, V scale, V shift) {
  const V v = sum * scale + shift;
  return v < V{} ? V{} : v;
}

// Where a part of the tensors starts. `sum` and `b` are null where nothing is added.
template <typename T>
struct Part {
  const T* a;
  const T* b;
  const accumulate_t<T>* scale;
  const accumulate_t<T>* shift;
  T* sum;
  T* out;
  bool streamed;
};

template <bool kAdd, typename T, typename Lanes>
RAN_INLINE void element(
    const Part<T>& p, int64_t at, vec_t<T> scale, vec_t<T> shift, Lanes lanes) {
  vec_t<T> v = load(p.a + at, lanes);
  if constexpr (kAdd) {
    v = v + load(p.b + at, lanes);
    put(p.sum + at, v, lanes, p.streamed);
  }
  put(p.out + at, affine_relu(v, scale, shift), lanes, p.streamed);
}

// (C, HW): `channels` maps.
template <bool kAdd, typename T>
RAN_SIMD void of_maps(const Part<T>& p, int64_t channels, int64_t hw) {
  using V = vec_t<T>;
  for (int64_t c = 0; c < channels; ++c) {
    const V scale = splat<V>(p.scale[c]);
    const V shift = splat<V>(p.shift[c]);
    for_vectors(hw, [&](int64_t i, int64_t, auto lanes) RAN_INLINE_LAMBDA {
      element<kAdd>(p, c * hw + i, scale, shift, lanes);
    });
  }
}

// (HW, C): `rows` positions.
template <bool kAdd, typename T>
RAN_SIMD void of_rows(const Part<T>& p, int64_t rows, int64_t channels) {
  for (int64_t r = 0; r < rows; ++r) {
    for_vectors(channels, [&](int64_t i, int64_t, auto lanes) RAN_INLINE_LAMBDA {
      const auto scale = load(p.scale + i, lanes);
      element<kAdd>(p, r * channels + i, scale, load(p.shift + i, lanes), lanes);
    });
  }
}

template <bool kAdd, typename T>
void run(const FeatureShape& shape, const AddAffineRelu& args) {
  const int64_t c = shape.c;
  const int64_t hw = shape.hw;
  const int64_t inner = shape.channels_last ? c : hw;
  const int64_t moved = (kAdd ? 4 : 2) * shape.n * c * hw;
  const Part<T> whole{
      static_cast<const T*>(args.a),
      static_cast<const T*>(args.b),
      static_cast<const accumulate_t<T>*>(args.scale),
      static_cast<const accumulate_t<T>*>(args.shift),
      static_cast<T*>(args.sum),
      static_cast<T*>(args.out),
      streams(static_cast<T*>(args.out), inner, moved) &&
          (!kAdd || streams(static_cast<T*>(args.sum), inner, moved))};
  share(
      shape.n,
      shape.channels_last ? hw : c,
      inner,
      [&](int64_t sample, int64_t begin, int64_t end) {
        const int64_t at = sample * c * hw + begin * inner;
        Part<T> part = whole;
        part.a += at;
        part.out += at;
        if constexpr (kAdd) {
          part.b += at;
          part.sum += at;
        }
        if (shape.channels_last) {
          of_rows<kAdd>(part, end - begin, c);
        } else {
          part.scale += begin;
          part.shift += begin;
          of_maps<kAdd>(part, end - begin, hw);
        }
      });
}

}  // namespace

void add_affine_relu(DType dtype, const FeatureShape& shape, const AddAffineRelu& args) {
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    args.b ? run<true, T>(shape, args) : run<false, T>(shape, args);
  });
}

}  // namespace ran::cpu
