// Maximum and mean over the channels of every position of x * sc, without writing that product.
#include "cbam_terms.cuh"
#include "reduction.cuh"

namespace ran::cuda {
namespace {

template <typename T_>
struct SpatialPoolOp {
  using T = T_;
  using A = accumulate_t<T>;
  using Acc = SumMax<A>;
  using Factor = A;
  static constexpr int kInputs = 1;
  static constexpr bool kWrites = false;
  static constexpr bool kOverChannels = true;

  const T* in[kInputs];
  const T* channel_logits;
  T* maps;
  int32_t* index;
  int64_t c;
  int64_t hw;

  template <int V>
  __device__ __forceinline__ void factors(int64_t n, int channel, A (&sc)[V]) const {
    gates(channel_logits, n * c + channel, sc);
  }

  // x1 = x sc
  __device__ __forceinline__ A
  take(Acc& acc, const A (&v)[kInputs], A sc, int, int channel) const {
    const A x1 = v[0] * sc;
    acc.take(x1, channel);
    return x1;
  }

  __device__ __forceinline__ void finish(const Acc& acc, int64_t n, int position) const {
    T* const max = maps + 2 * n * hw + position;
    max[0] = narrow<T>(acc.max);
    max[hw] = narrow<T>(acc.sum / static_cast<A>(c));
    index[n * hw + position] = acc.index;
  }
};

}  // namespace

int64_t spatial_pool_workspace(DType dtype, const FeatureShape& shape) {
  return workspace_of<SpatialPoolOp>(dtype, shape);
}

int spatial_pool(
    DType dtype,
    const FeatureShape& shape,
    const SpatialPool& args,
    void* workspace,
    void* stream) {
  int error = cudaSuccess;
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const SpatialPoolOp<T> op{
        {static_cast<const T*>(args.x)},
        static_cast<const T*>(args.channel_logits),
        static_cast<T*>(args.maps),
        args.index,
        shape.c,
        shape.hw};
    error = reduce(op, shape, aligned(args.x, args.channel_logits), workspace, stream);
  });
  return error;
}

}  // namespace ran::cuda
