// sum_grad = sum of g,  sum_grad_xhat = sum of g (x - mean) invstd, with g what a ReLU lets through.
#include "batch_norm_channels.cuh"
#include "reduce_batch.cuh"

namespace ran::cuda {
namespace {

template <typename A>
struct Two {
  A first;
  A second;

  static __device__ __forceinline__ Two start(int) {
    return {A(0), A(0)};
  }
  __device__ __forceinline__ void merge(const Two& other) {
    first += other.first;
    second += other.second;
  }
  __device__ __forceinline__ Two of_lane_xor(int mask) const {
    return {__shfl_xor_sync(~0u, first, mask), __shfl_xor_sync(~0u, second, mask)};
  }
};

template <typename T_, bool kOut>
struct BatchNormReduceOp {
  using T = T_;
  using A = accumulate_t<T>;
  using Channel = Affine<A>;
  using Slot = Two<A>;
  using Part = Two<A>;
  using Whole = Two<double>;
  struct Step {};
  static constexpr int kInputs = kOut ? 3 : 2;
  static constexpr bool kWrites = kOut;
  static constexpr int kDeep = 2;
  [[maybe_unused]] static constexpr int kPlanes = 2;

  const T* in[kInputs];  // grad, x, out
  T* written;
  Norm<A> norm;
  A* sum_grad;
  A* sum_grad_xhat;
  A above;

  __device__ __forceinline__ Channel channel(int c) const {
    Channel channel[1];
    A invstd[1];
    norm(c, channel, invstd);
    return channel[0];
  }
  __device__ __forceinline__ void begin(Slot&, const A (&)[kInputs]) const {}
  __device__ __forceinline__ Step step(int) const {
    return {};
  }
  // Without invstd, which all of a channel have in common.
  __device__ __forceinline__ A
  take(Slot& slot, const A (&v)[kInputs], const Channel& channel, const Step&) const {
    A g = v[0];
    if constexpr (kOut) {
      g = passing(g, v[2], A(0));
    } else {
      g = passing(g, channel(v[1]), above);
    }
    slot.first += g;
    slot.second += g * (v[1] - channel.mean);
    return g;
  }
  __device__ __forceinline__ Part part(const Slot& slot, int) const {
    return slot;
  }

  __device__ __forceinline__ void keep(const Part& part, A* to, int64_t stride) const {
    to[0] = part.first;
    to[stride] = part.second;
  }
  __device__ __forceinline__ Whole whole(const A* from, int64_t stride, int64_t) const {
    return {static_cast<double>(from[0]), static_cast<double>(from[stride])};
  }
  template <typename B>
  __device__ __forceinline__ void finish(const Two<B>& all, int c) const {
    sum_grad[c] = static_cast<A>(all.first);
    sum_grad_xhat[c] = static_cast<A>(all.second * norm.invstd(c));
  }
};

template <typename T, bool kOut>
int sums(const FeatureShape& shape, const BatchNormReduce& args, void* workspace, void* stream) {
  using A = accumulate_t<T>;
  BatchNormReduceOp<T, kOut> op{
      {static_cast<const T*>(args.grad), static_cast<const T*>(args.x)},
      static_cast<T*>(args.masked),
      Norm<A>(args.channels),
      static_cast<A*>(args.sum_grad),
      static_cast<A*>(args.sum_grad_xhat),
      passing_above<T>(args.relu)};
  if constexpr (kOut) {
    op.in[2] = static_cast<const T*>(args.out);
  }
  const bool packed = aligned(args.grad, args.x, args.out, args.masked);
  return reduce_batch(op, shape, packed, workspace, stream);
}

// The workspace is the same with and without a result.
template <typename T>
using WithoutOut = BatchNormReduceOp<T, false>;

}  // namespace

int64_t batch_norm_reduce_workspace(DType dtype, const FeatureShape& shape) {
  return batch_workspace_of<WithoutOut>(dtype, shape);
}

int batch_norm_reduce(
    DType dtype,
    const FeatureShape& shape,
    const BatchNormReduce& args,
    void* workspace,
    void* stream) {
  int error = cudaSuccess;
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    error = args.out ? sums<T, true>(shape, args, workspace, stream)
                     : sums<T, false>(shape, args, workspace, stream);
  });
  return error;
}

}  // namespace ran::cuda
