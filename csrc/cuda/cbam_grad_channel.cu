// Second pass of CBAM's backward: the channel logits' gradient.
#include "cbam_terms.cuh"
#include "reduction.cuh"

namespace ran::cuda {
namespace {

template <typename T_>
struct CbamGradChannelOp {
  using T = T_;
  using A = accumulate_t<T>;
  using Acc = Sum<A>;
  using Factor = BackTerm<A>;
  static constexpr int kInputs = 2;
  static constexpr bool kWrites = false;
  static constexpr bool kOverChannels = false;

  const T* in[kInputs];
  Incoming<T> incoming;
  const T* channel_logits;
  T* grad_channel;
  int64_t c;

  template <int V>
  __device__ __forceinline__ void factors(int64_t n, int position, Factor (&f)[V]) const {
    incoming.positions(n, position, f);
  }

  // G = g ss + grad_maps[1] / C + (channel == spatial_index) grad_maps[0]
  __device__ __forceinline__ A
  take(Acc& acc, const A (&v)[kInputs], const Factor& term, int channel, int) const {
    const A G = term(v[0], channel);
    acc.sum += G * v[1];
    return G;
  }

  // d / d channel_logits = sc (1 - sc) sum of G x
  __device__ __forceinline__ void finish(const Acc& acc, int64_t n, int channel) const {
    const int64_t at = n * c + channel;
    grad_channel[at] = narrow<T>(grad_logit(acc.sum, sigmoid(widen(channel_logits[at]))));
  }
};

}  // namespace

int64_t cbam_grad_channel_workspace(DType dtype, const FeatureShape& shape) {
  return workspace_of<CbamGradChannelOp>(dtype, shape);
}

int cbam_grad_channel(
    DType dtype,
    const FeatureShape& shape,
    const CbamGradChannel& args,
    void* workspace,
    void* stream) {
  int error = cudaSuccess;
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const CbamGradChannelOp<T> op{
        {static_cast<const T*>(args.incoming.grad), static_cast<const T*>(args.x)},
        Incoming<T>(args.incoming, shape),
        static_cast<const T*>(args.channel_logits),
        static_cast<T*>(args.grad_channel),
        shape.c};
    const bool packed = aligned(args.incoming) && aligned(args.x);
    error = reduce(op, shape, packed, workspace, stream);
  });
  return error;
}

}  // namespace ran::cuda
