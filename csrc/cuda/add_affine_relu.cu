// sum = a + b, out = max(scale sum + shift, 0) in one pass.
#include "../add_affine_relu.h"
#include "map.cuh"

namespace ran::cuda {
namespace {

template <typename A>
struct Affine {
  A scale;
  A shift;
};

template <typename T_, bool kAdd>
struct AddAffineReluOp {
  using T = T_;
  using A = accumulate_t<T>;
  using Channel = Affine<A>;
  using Position = Nothing;
  static constexpr int kDeep = kAdd ? 2 : 4;
  static constexpr int kInputs = kAdd ? 2 : 1;
  static constexpr bool kSum = kAdd;

  const T* in[kInputs];
  T* written;
  T* sum;
  const A* scale;
  const A* shift_;

  template <int V>
  __device__ __forceinline__ void channels(int64_t, int channel, Channel (&f)[V]) const {
    A s[V];
    A t[V];
    load(scale + channel, s);
    load(shift_ + channel, t);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      f[i] = {s[i], t[i]};
    }
  }
  template <int V>
  __device__ __forceinline__ void positions(int64_t, int, Nothing (&)[V]) const {}

  template <typename Term>
  static __device__ __forceinline__ void shift(Term&, int) {}

  __device__ __forceinline__ A total(const A (&v)[kInputs]) const {
    return v[0] + v[kInputs - 1];
  }
  __device__ __forceinline__ A value(
      const A (&v)[kInputs], Channel channel, Nothing, int, int) const {
    const A out = (kAdd ? total(v) : v[0]) * channel.scale + channel.shift;
    return out <= A(0) ? A(0) : out;  // NaN stays
  }
};

template <typename T, bool kAdd>
int launch(const FeatureShape& shape, const AddAffineRelu& args, void* stream) {
  using A = accumulate_t<T>;
  AddAffineReluOp<T, kAdd> op{
      {static_cast<const T*>(args.a)},
      static_cast<T*>(args.out),
      static_cast<T*>(args.sum),
      static_cast<const A*>(args.scale),
      static_cast<const A*>(args.shift)};
  if constexpr (kAdd) {
    op.in[1] = static_cast<const T*>(args.b);
  }
  const bool packed = aligned(args.a, args.b, args.scale, args.shift, args.sum, args.out);
  return map(op, shape, packed, stream);
}

}  // namespace

int add_affine_relu(
    DType dtype, const FeatureShape& shape, const AddAffineRelu& args, void* stream) {
  int error = cudaSuccess;
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    error = args.b ? launch<T, true>(shape, args, stream) : launch<T, false>(shape, args, stream);
  });
  return error;
}

}  // namespace ran::cuda
