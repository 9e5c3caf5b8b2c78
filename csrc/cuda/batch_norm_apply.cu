// out = (x - mean) scale + bias (+ shortcut) (, ReLU)
#include "batch_norm_channels.cuh"

namespace ran::cuda {
namespace {

template <typename T_, bool kShortcut>
struct BatchNormApplyOp {
  using T = T_;
  using A = accumulate_t<T>;
  using Channel = Affine<A>;
  using Position = Nothing;
  static constexpr int kInputs = kShortcut ? 2 : 1;
  static constexpr int kDeep = kShortcut ? 2 : 4;
  static constexpr bool kSum = false;

  const T* in[kInputs];
  T* written;
  Norm<A> norm;
  A floor;

  template <int V>
  __device__ __forceinline__ void channels(int64_t, int channel, Channel (&f)[V]) const {
    A invstd[V];
    norm(channel, f, invstd);
  }
  template <int V>
  __device__ __forceinline__ void positions(int64_t, int, Nothing (&)[V]) const {}

  template <typename Term>
  static __device__ __forceinline__ void shift(Term&, int) {}

  __device__ __forceinline__ A value(
      const A (&v)[kInputs], const Channel& channel, Nothing, int, int) const {
    const A out = kShortcut ? channel(v[0]) + v[kInputs - 1] : channel(v[0]);
    return out < floor ? floor : out;  // NaN stays
  }
};

template <typename T, bool kShortcut>
int apply(const FeatureShape& shape, const BatchNormApply& args, void* stream) {
  using A = accumulate_t<T>;
  BatchNormApplyOp<T, kShortcut> op{
      {static_cast<const T*>(args.x)},
      static_cast<T*>(args.out),
      Norm<A>(args.channels),
      args.relu ? A(0) : -std::numeric_limits<A>::infinity()};
  if constexpr (kShortcut) {
    op.in[1] = static_cast<const T*>(args.shortcut);
  }
  return map_batch(op, shape, aligned(args.x, args.shortcut, args.out), stream);
}

}  // namespace

int batch_norm_apply(
    DType dtype, const FeatureShape& shape, const BatchNormApply& args, void* stream) {
  int error = cudaSuccess;
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    error = args.shortcut ? apply<T, true>(shape, args, stream)
                          : apply<T, false>(shape, args, stream);
  });
  return error;
}

}  // namespace ran::cuda
