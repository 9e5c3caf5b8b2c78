// grad_x = scale (g - (sum_grad + (x - mean) invstd sum_grad_xhat) / count) (+ addend)
#include "batch_norm_channels.h"
#include "batch_norm_walks.h"

namespace ran::cpu {
namespace {

// A channel's constants beside those of the forward.
template <typename V>
struct Slopes {
  Affine<V> affine;
  V mean_grad;
  V slope;
};

// What x is read for.
enum class Reads {
  kNothing,
  kMask,  // the ReLU's result
  kMaskAndSlope,  // and the statistics depend on x; what is 0 times an infinity stays out otherwise
};

template <Reads kReads, bool kAdd, typename T>
struct Grad : AffineOf<accumulate_t<T>> {
  using A = accumulate_t<T>;
  using V = vec_t<T>;
  using Of = AffineOf<A>;

  RAN_INLINE Slopes<V> channel(int64_t c) const {
    return {Of::channel(c), splat<V>(mean_grad[c]), splat<V>(slope[c])};
  }
  template <typename Lanes>
  RAN_INLINE Slopes<V> columns(int64_t c, Lanes lanes) const {
    return {Of::columns(c, lanes), load(mean_grad + c, lanes), load(slope + c, lanes)};
  }
  template <typename Lanes>
  RAN_INLINE void operator()(int64_t at, const Slopes<V>& of, Lanes lanes) const {
    const Affine<V>& affine = of.affine;
    V g = load(grad + at, lanes);
    V v{};
    if constexpr (kReads != Reads::kNothing) {
      v = load(x + at, lanes);
      g = passing(g, normalise(v, affine.mean, affine.scale, affine.bias), splat<V>(above));
    }
    if constexpr (kReads == Reads::kMaskAndSlope) {
      g = normalise_grad(g, v, affine.mean, affine.scale, of.mean_grad, of.slope);
    } else {
      g = g * affine.scale;
    }
    if constexpr (kAdd) {
      g = g + load(addend + at, lanes);
    }
    put(grad_x + at, g, lanes, streamed);
  }

  const T* grad;
  const T* x;
  const T* addend;
  T* grad_x;
  const A* mean_grad;
  const A* slope;
  A above;
  bool streamed;
};

template <Reads kReads, bool kAdd, typename T>
void run(const FeatureShape& shape, const BatchNormGrad& args) {
  using A = accumulate_t<T>;
  const int64_t c = shape.c;
  const ChannelFactors<A> factors(args.channels, c);
  std::vector<A> slopes(2 * c);
  if (args.sum_grad) {
    const A* sum_grad = static_cast<const A*>(args.sum_grad);
    const A* sum_grad_xhat = static_cast<const A*>(args.sum_grad_xhat);
    const A count = static_cast<A>(args.count);
    for (int64_t i = 0; i < c; ++i) {
      slopes[i] = sum_grad[i] / count;
      slopes[c + i] = sum_grad_xhat[i] / count * factors.invstd[i];
    }
  }
  const int64_t moved = (2 + (kReads != Reads::kNothing) + kAdd) * shape.n * c * shape.hw;
  T* grad_x = static_cast<T*>(args.grad_x);
  walk(
      shape,
      Grad<kReads, kAdd, T>{
          AffineOf<A>(factors),
          static_cast<const T*>(args.grad),
          static_cast<const T*>(args.x),
          static_cast<const T*>(args.addend),
          grad_x,
          slopes.data(),
          slopes.data() + c,
          passing_above<T>(args.relu),
          streams(grad_x, shape.channels_last ? c : shape.hw, moved)});
}

template <Reads kReads, typename T>
void with(const FeatureShape& shape, const BatchNormGrad& args) {
  args.addend ? run<kReads, true, T>(shape, args) : run<kReads, false, T>(shape, args);
}

}  // namespace

void batch_norm_grad(DType dtype, const FeatureShape& shape, const BatchNormGrad& args) {
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (args.sum_grad) {
      with<Reads::kMaskAndSlope, T>(shape, args);
    } else if (args.relu) {
      with<Reads::kMask, T>(shape, args);
    } else {
      with<Reads::kNothing, T>(shape, args);
    }
  });
}

}  // namespace ran::cpu
