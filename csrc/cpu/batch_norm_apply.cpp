// out = (x - mean) scale + bias (+ shortcut) (, ReLU)
#include "batch_norm_channels.h"
#include "batch_norm_walks.h"

namespace ran::cpu {
namespace {

template <bool kShortcut, typename T>
struct Apply : AffineOf<accumulate_t<T>> {
  using V = vec_t<T>;

  template <typename Lanes>
  RAN_INLINE void operator()(int64_t at, const Affine<V>& of, Lanes lanes) const {
    V v = normalise(load(x + at, lanes), of.mean, of.scale, of.bias);
    if constexpr (kShortcut) {
      v = v + load(shortcut + at, lanes);
    }
    const V least = splat<V>(floor);
    put(out + at, v < least ? least : v, lanes, streamed);  // NaN passes
  }

  const T* x;
  const T* shortcut;
  T* out;
  accumulate_t<T> floor;
  bool streamed;
};

template <bool kShortcut, typename T>
void run(const FeatureShape& shape, const BatchNormApply& args) {
  using A = accumulate_t<T>;
  const ChannelFactors<A> factors(args.channels, shape.c);
  const int64_t moved = (kShortcut ? 3 : 2) * shape.n * shape.c * shape.hw;
  T* out = static_cast<T*>(args.out);
  walk(
      shape,
      Apply<kShortcut, T>{
          AffineOf<A>(factors),
          static_cast<const T*>(args.x),
          static_cast<const T*>(args.shortcut),
          out,
          args.relu ? A(0) : -std::numeric_limits<A>::infinity(),
          streams(out, shape.channels_last ? shape.c : shape.hw, moved)});
}

}  // namespace

void batch_norm_apply(DType dtype, const FeatureShape& shape, const BatchNormApply& args) {
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    args.shortcut ? run<true, T>(shape, args) : run<false, T>(shape, args);
  });
}

}  // namespace ran::cpu
