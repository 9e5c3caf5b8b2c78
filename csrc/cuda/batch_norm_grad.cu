// grad_x = scale (g - (sum_grad + (x - mean) invstd sum_grad_xhat) / count) (+ addend)
#include "batch_norm_channels.cuh"

namespace ran::cuda {
namespace {

template <typename T_, bool kAdd>
struct BatchNormGradOp {
  using T = T_;
  using A = accumulate_t<T>;
  using Position = Nothing;
  // A channel's numbers beside those of the forward.
  struct Channel {
    Affine<A> affine;
    A mean_grad;
    A slope;
  };
  static constexpr int kInputs = kAdd ? 3 : 2;
  static constexpr int kDeep = kAdd ? 1 : 2;  // five numbers of each channel take the registers
  static constexpr bool kSum = false;

  const T* in[kInputs];  // grad, x or null where nothing is read of it, addend
  T* written;
  Norm<A> norm;
  const A* sum_grad;
  const A* sum_grad_xhat;
  A count;
  A above;
  bool sloped;  // the statistics depend on x; what is 0 times an infinity stays out otherwise

  template <int V>
  __device__ __forceinline__ void channels(int64_t, int channel, Channel (&f)[V]) const {
    Affine<A> affine[V];
    A invstd[V];
    A sums[V];
    A dots[V];
    norm(channel, affine, invstd);
    norm.neighbours(sum_grad, channel, A(0), sums);
    norm.neighbours(sum_grad_xhat, channel, A(0), dots);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      f[i] = {affine[i], sums[i] / count, dots[i] / count * invstd[i]};
    }
  }
  template <int V>
  __device__ __forceinline__ void positions(int64_t, int, Nothing (&)[V]) const {}

  template <typename Term>
  static __device__ __forceinline__ void shift(Term&, int) {}

  __device__ __forceinline__ A value(
      const A (&v)[kInputs], const Channel& channel, Nothing, int, int) const {
    const Affine<A>& affine = channel.affine;
    const A g = passing(v[0], affine(v[1]), above);
    const A slope =
        normalise_grad(g, v[1], affine.mean, affine.scale, channel.mean_grad, channel.slope);
    const A result = sloped ? slope : g * affine.scale;
    return kAdd ? result + v[kInputs - 1] : result;
  }
};

template <typename T, bool kAdd>
int grad(const FeatureShape& shape, const BatchNormGrad& args, void* stream) {
  using A = accumulate_t<T>;
  const bool sloped = args.sum_grad != nullptr;
  const void* x = sloped || args.relu ? args.x : nullptr;
  BatchNormGradOp<T, kAdd> op{
      {static_cast<const T*>(args.grad), static_cast<const T*>(x)},
      static_cast<T*>(args.grad_x),
      Norm<A>(args.channels),
      static_cast<const A*>(args.sum_grad),
      static_cast<const A*>(args.sum_grad_xhat),
      static_cast<A>(args.count),
      passing_above<T>(args.relu),
      sloped};
  if constexpr (kAdd) {
    op.in[2] = static_cast<const T*>(args.addend);
  }
  op.norm.packed = op.norm.packed && aligned(args.sum_grad, args.sum_grad_xhat);
  return map_batch(op, shape, aligned(args.grad, x, args.addend, args.grad_x), stream);
}

}  // namespace

int batch_norm_grad(
    DType dtype, const FeatureShape& shape, const BatchNormGrad& args, void* stream) {
  int error = cudaSuccess;
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    error = args.addend ? grad<T, true>(shape, args, stream) : grad<T, false>(shape, args, stream);
  });
  return error;
}

}  // namespace ran::cuda
