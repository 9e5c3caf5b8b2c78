// Third pass of CBAM's backward: the gradient of x.
#include "cbam_terms.cuh"
#include "map.cuh"

namespace ran::cuda {
namespace {

template <typename T_>
struct CbamGradXOp {
  using T = T_;
  using A = accumulate_t<T>;
  using Channel = BackTerm<A>;
  using Position = BackTerm<A>;
  static constexpr int kDeep = 2;
  static constexpr int kInputs = 1;
  static constexpr bool kSum = false;

  const T* in[kInputs];
  T* written;
  Incoming<T> incoming;
  const T* channel_logits;
  const T* grad_mean;
  const T* grad_max;
  const int32_t* channel_index;
  int64_t c;
  A share;  // 1 / HW

  template <int V>
  __device__ __forceinline__ void channels(int64_t n, int channel, Channel (&term)[V]) const {
    const int64_t at = n * c + channel;
    const auto* const winner = channel_index == nullptr ? nullptr : channel_index + at;
    back_terms(channel_logits, grad_mean + at, grad_max + at, winner, share, at, term);
  }
  template <int V>
  __device__ __forceinline__ void positions(int64_t n, int position, Position (&term)[V]) const {
    incoming.positions(n, position, term);
  }

  static __device__ __forceinline__ void shift(BackTerm<A>& term, int by) {
    term.winner -= by;
  }

  // G = g ss + grad_maps[1] / C + (channel == spatial_index) grad_maps[0]
  // grad_x = G sc + grad_mean / HW + (position == channel_index) grad_max
  __device__ __forceinline__ A value(
      const A (&v)[kInputs],
      const Channel& channel_term,
      const Position& position_term,
      int channel,
      int position) const {
    return channel_term(position_term(v[0], channel), position);
  }
};

}  // namespace

int cbam_grad_x(DType dtype, const FeatureShape& shape, const CbamGradX& args, void* stream) {
  int error = cudaSuccess;
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const CbamGradXOp<T> op{
        {static_cast<const T*>(args.incoming.grad)},
        static_cast<T*>(args.grad_x),
        Incoming<T>(args.incoming, shape),
        static_cast<const T*>(args.channel_logits),
        static_cast<const T*>(args.grad_mean),
        static_cast<const T*>(args.grad_max),
        args.channel_index,
        shape.c,
        A(1) / static_cast<A>(shape.hw)};
    const bool packed = aligned(args.incoming) &&
        aligned(args.channel_logits, args.grad_mean, args.grad_max, args.channel_index,
                args.grad_x);
    error = map(op, shape, packed, stream);
  });
  return error;
}

}  // namespace ran::cuda
