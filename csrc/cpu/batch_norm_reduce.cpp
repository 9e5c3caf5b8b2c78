// sum_grad = sum of g,  sum_grad_xhat = sum of g (x - mean) invstd, with g what a ReLU lets through.
#include "batch_norm_channels.h"
#include "batch_norm_walks.h"

namespace ran::cpu {
namespace {

template <bool kOut, typename T>
struct Reduce : AffineOf<accumulate_t<T>> {
  using V = vec_t<T>;

  RAN_INLINE void prefetch(int64_t at) const {
    __builtin_prefetch(x + at);
    __builtin_prefetch(grad + at);
    if constexpr (kOut) {
      __builtin_prefetch(out + at);
    }
  }
  template <typename Lanes>
  RAN_INLINE Two<V> operator()(int64_t at, const Affine<V>& of, Lanes lanes) const {
    const V v = load(x + at, lanes);
    V g = load(grad + at, lanes);
    if constexpr (kOut) {
      g = passing(g, load(out + at, lanes), V{});
      put(masked + at, g, lanes, streamed);
    } else {
      g = passing(g, normalise(v, of.mean, of.scale, of.bias), splat<V>(above));
    }
    return {g, g * (v - of.mean)};
  }

  const T* grad;
  const T* x;
  const T* out;
  T* masked;
  accumulate_t<T> above;
  bool streamed;
};

template <bool kOut, typename T>
void run(const FeatureShape& shape, const BatchNormReduce& args) {
  using A = accumulate_t<T>;
  const ChannelFactors<A> factors(args.channels, shape.c);
  const int64_t inner = shape.channels_last ? shape.c : shape.hw;
  T* masked = static_cast<T*>(args.masked);
  const std::vector<double> sums = sum_channels<T>(
      shape,
      Reduce<kOut, T>{
          AffineOf<A>(factors),
          static_cast<const T*>(args.grad),
          static_cast<const T*>(args.x),
          static_cast<const T*>(args.out),
          masked,
          passing_above<T>(args.relu),
          kOut && streams(masked, inner, 4 * shape.n * shape.c * shape.hw)});
  A* sum_grad = static_cast<A*>(args.sum_grad);
  A* sum_grad_xhat = static_cast<A*>(args.sum_grad_xhat);
  for (int64_t c = 0; c < shape.c; ++c) {
    sum_grad[c] = static_cast<A>(sums[c]);
    sum_grad_xhat[c] = static_cast<A>(sums[shape.c + c] * factors.invstd[c]);
  }
}

}  // namespace

void batch_norm_reduce(DType dtype, const FeatureShape& shape, const BatchNormReduce& args) {
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    args.out ? run<true, T>(shape, args) : run<false, T>(shape, args);
  });
}

}  // namespace ran::cpu
