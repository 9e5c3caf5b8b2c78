// out = x * sc * ss (+ shortcut) (, ReLU) in one pass.
#include "cbam_terms.cuh"
#include "map.cuh"

namespace ran::cuda {
namespace {

template <typename T_, bool kShortcut>
struct CbamGateOp {
  using T = T_;
  using A = accumulate_t<T>;
  using Channel = A;
  using Position = A;
  static constexpr int kDeep = kShortcut ? 2 : 4;
  static constexpr int kInputs = kShortcut ? 2 : 1;
  static constexpr bool kSum = false;

  const T* in[kInputs];
  T* written;
  const T* channel_logits;
  const T* spatial_logits;
  int64_t c;
  int64_t hw;
  bool relu;

  template <int V>
  __device__ __forceinline__ void channels(int64_t n, int channel, A (&sc)[V]) const {
    gates(channel_logits, n * c + channel, sc);
  }
  template <int V>
  __device__ __forceinline__ void positions(int64_t n, int position, A (&ss)[V]) const {
    gates(spatial_logits, n * hw + position, ss);
  }

  static __device__ __forceinline__ void shift(A&, int) {}

  __device__ __forceinline__ A value(const A (&v)[kInputs], A sc, A ss, int, int) const {
    A out = v[0] * sc * ss;
    if constexpr (kShortcut) {
      out += v[1];
    }
    return relu && out <= A(0) ? A(0) : out;  // NaN stays
  }
};

template <typename T, bool kShortcut>
int gate(const FeatureShape& shape, const CbamGate& args, void* stream) {
  CbamGateOp<T, kShortcut> op{
      {static_cast<const T*>(args.x)},
      static_cast<T*>(args.out),
      static_cast<const T*>(args.channel_logits),
      static_cast<const T*>(args.spatial_logits),
      shape.c,
      shape.hw,
      args.relu};
  if constexpr (kShortcut) {
    op.in[1] = static_cast<const T*>(args.shortcut);
  }
  const bool packed =
      aligned(args.x, args.out, args.channel_logits, args.spatial_logits, args.shortcut);
  return map(op, shape, packed, stream);
}

}  // namespace

int cbam_gate(DType dtype, const FeatureShape& shape, const CbamGate& args, void* stream) {
  int error = cudaSuccess;
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    error = args.shortcut ? gate<T, true>(shape, args, stream)
                          : gate<T, false>(shape, args, stream);
  });
  return error;
}

}  // namespace ran::cuda
