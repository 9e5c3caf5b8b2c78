// Mean and maximum over the positions of every channel, in one read of x.
#include "reduction.cuh"

namespace ran::cuda {
namespace {

template <typename T_>
struct ChannelPoolOp {
  using T = T_;
  using A = accumulate_t<T>;
  using Acc = SumMax<A>;
  struct Factor {};
  static constexpr int kInputs = 1;
  static constexpr bool kWrites = false;
  static constexpr bool kOverChannels = false;

  const T* in[kInputs];
  T* mean;
  T* max;
  int32_t* index;
  int64_t c;
  A hw;

  template <int V>
  __device__ __forceinline__ void factors(int64_t, int, Factor (&)[V]) const {}

  __device__ __forceinline__ A
  take(Acc& acc, const A (&v)[kInputs], Factor, int, int position) const {
    acc.take(v[0], position);
    return v[0];
  }

  __device__ __forceinline__ void finish(const Acc& acc, int64_t n, int channel) const {
    const int64_t at = n * c + channel;
    mean[at] = narrow<T>(acc.sum / hw);
    max[at] = narrow<T>(acc.max);
    index[at] = acc.index;
  }
};

}  // namespace

int64_t channel_pool_workspace(DType dtype, const FeatureShape& shape) {
  return workspace_of<ChannelPoolOp>(dtype, shape);
}

int channel_pool(
    DType dtype,
    const FeatureShape& shape,
    const ChannelPool& args,
    void* workspace,
    void* stream) {
  int error = cudaSuccess;
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const ChannelPoolOp<T> op{
        {static_cast<const T*>(args.x)},
        static_cast<T*>(args.mean),
        static_cast<T*>(args.max),
        args.index,
        shape.c,
        static_cast<accumulate_t<T>>(shape.hw)};
    error = reduce(op, shape, aligned(args.x), workspace, stream);
  });
  return error;
}

}  // namespace ran::cuda
