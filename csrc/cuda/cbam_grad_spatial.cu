// First pass of CBAM's backward: the ReLU's mask and the spatial logits' gradient.
#include "cbam_terms.cuh"
#include "reduction.cuh"

namespace ran::cuda {
namespace {

template <typename T_, bool kRelu>
struct CbamGradSpatialOp {
  using T = T_;
  using A = accumulate_t<T>;
  using Acc = Sum<A>;
  using Factor = A;
  static constexpr int kInputs = kRelu ? 3 : 2;
  static constexpr bool kWrites = kRelu;
  static constexpr bool kOverChannels = true;

  const T* in[kInputs];
  T* written;
  const T* channel_logits;
  const T* spatial_logits;
  T* grad_spatial;
  int64_t c;
  int64_t hw;

  template <int V>
  __device__ __forceinline__ void factors(int64_t n, int channel, A (&sc)[V]) const {
    gates(channel_logits, n * c + channel, sc);
  }

  __device__ __forceinline__ A
  take(Acc& acc, const A (&v)[kInputs], A sc, int, int) const {
    A g = v[0];
    if constexpr (kRelu) {
      g = v[2] <= A(0) ? A(0) : g;  // where out is NaN the gradient passes
    }
    acc.sum += g * (v[1] * sc);
    return g;
  }

  // d / d spatial_logits = ss (1 - ss) sum of g x sc
  __device__ __forceinline__ void finish(const Acc& acc, int64_t n, int position) const {
    const int64_t at = n * hw + position;
    grad_spatial[at] = narrow<T>(grad_logit(acc.sum, sigmoid(widen(spatial_logits[at]))));
  }
};

// The workspace is the same with and without ReLU.
template <typename T>
using WithoutRelu = CbamGradSpatialOp<T, false>;

template <typename T, bool kRelu>
int grad_spatial(
    const FeatureShape& shape, const CbamGradSpatial& args, void* workspace, void* stream) {
  CbamGradSpatialOp<T, kRelu> op{
      {static_cast<const T*>(args.grad), static_cast<const T*>(args.x)},
      static_cast<T*>(args.masked),
      static_cast<const T*>(args.channel_logits),
      static_cast<const T*>(args.spatial_logits),
      static_cast<T*>(args.grad_spatial),
      shape.c,
      shape.hw};
  if constexpr (kRelu) {
    op.in[2] = static_cast<const T*>(args.out);
  }
  const bool packed = aligned(args.grad, args.x, args.out, args.masked, args.channel_logits);
  return reduce(op, shape, packed, workspace, stream);
}

}  // namespace

int64_t cbam_grad_spatial_workspace(DType dtype, const FeatureShape& shape) {
  return workspace_of<WithoutRelu>(dtype, shape);
}

int cbam_grad_spatial(
    DType dtype,
    const FeatureShape& shape,
    const CbamGradSpatial& args,
    void* workspace,
    void* stream) {
  int error = cudaSuccess;
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    error = args.out ? grad_spatial<T, true>(shape, args, workspace, stream)
                     : grad_spatial<T, false>(shape, args, workspace, stream);
  });
  return error;
}

}  // namespace ran::cuda
