// Mean and biased variance of each channel, of x or of x + addend, which is written.
#include "../batch_norm.h"
#include "reduce_batch.cuh"

namespace ran::cuda {
namespace {

// Numbers by how far their mean is from one of them, and their squared deviations from it.
template <typename A>
struct Moments {
  A count;
  A origin;
  A mean;
  A squares;

  static __device__ __forceinline__ Moments start(int) {
    return {A(0), A(0), A(0), A(0)};
  }
  // Chan, Golub and LeVeque 1979. The origin that is nearer to its mean stays: one far out would cost
  // the others' means their digits. Written so that of equal numbers nothing is lost, and that
  // infinite means stay.
  __device__ __forceinline__ void merge(const Moments& other) {
    if (count == A(0)) {
      *this = other;
    } else if (other.count > A(0)) {
      const A total = count + other.count;
      const A share = other.count / total;
      const A between = mean == other.mean ? A(0) : other.mean - mean;
      const A apart = (other.origin - origin) + between;
      squares += other.squares + count * share * apart * apart;
      if (fabs(other.mean) < fabs(mean)) {
        origin = other.origin;
        mean = other.mean - apart * (count / total);
      } else {
        mean += apart * share;
      }
      count = total;
    }
  }
  __device__ __forceinline__ Moments of_lane_xor(int mask) const {
    return {
        __shfl_xor_sync(~0u, count, mask),
        __shfl_xor_sync(~0u, origin, mask),
        __shfl_xor_sync(~0u, mean, mask),
        __shfl_xor_sync(~0u, squares, mask)};
  }
};

template <typename T_, bool kAdd>
struct BatchNormStatisticsOp {
  using T = T_;
  using A = accumulate_t<T>;
  static constexpr int kInputs = kAdd ? 2 : 1;
  static constexpr bool kWrites = kAdd;
  static constexpr int kDeep = kAdd ? 2 : 4;
  [[maybe_unused]] static constexpr int kPlanes = 3;

  const T* in[kInputs];
  T* written;
  A* mean;
  A* variance;

  // Deviations are from one of the slot's own elements, which costs a mean far from 0 no digits: the
  // sum of them, and their squares from their mean.
  struct Slot {
    A origin;
    A sum;
    A squares;
  };
  struct Channel {};
  // 1 / (k (k - 1)), and 0 for the first.
  struct Step {
    A k;
    A share;
  };
  using Part = Moments<A>;
  using Whole = Moments<double>;

  __device__ __forceinline__ A element(const A (&v)[kInputs]) const {
    if constexpr (kAdd) {
      return widen(narrow<T>(v[0] + v[1]));
    } else {
      return v[0];
    }
  }
  __device__ __forceinline__ void begin(Slot& slot, const A (&v)[kInputs]) const {
    const A x = element(v);
    slot.origin = x - x == A(0) ? x : A(0);  // unless it is no number
  }
  __device__ __forceinline__ Channel channel(int) const {
    return {};
  }
  __device__ __forceinline__ Step step(int k) const {
    const A count = static_cast<A>(k);
    return {count, k == 1 ? A(0) : A(1) / (count * (count - A(1)))};
  }
  // Youngs and Cramer 1971. In explicit fmas: a sum has the statistics, to the bit, that it would have
  // by itself.
  __device__ __forceinline__ A
  take(Slot& slot, const A (&v)[kInputs], const Channel&, const Step& step) const {
    const A x = element(v);
    const A deviation = x - slot.origin;
    slot.sum += deviation;
    const A apart = fma(step.k, deviation, -slot.sum);
    slot.squares = fma(apart * step.share, apart, slot.squares);
    return x;
  }
  __device__ __forceinline__ Part part(const Slot& slot, int count) const {
    const A k = static_cast<A>(count);
    return {k, slot.origin, count == 0 ? A(0) : slot.sum / k, slot.squares};
  }

  // The mean as two numbers: rounded, it would be off by much of what parts are apart.
  __device__ __forceinline__ void keep(const Part& part, A* to, int64_t stride) const {
    to[0] = part.origin;
    to[stride] = part.mean;
    to[2 * stride] = part.squares;
  }
  __device__ __forceinline__ Whole whole(const A* from, int64_t stride, int64_t count) const {
    return {
        static_cast<double>(count),
        static_cast<double>(from[0]),
        static_cast<double>(from[stride]),
        static_cast<double>(from[2 * stride])};
  }
  template <typename B>
  __device__ __forceinline__ void finish(const Moments<B>& all, int c) const {
    mean[c] = static_cast<A>(all.origin + all.mean);
    variance[c] = static_cast<A>(all.squares / all.count);
  }
};

template <typename T, bool kAdd>
int statistics(
    const FeatureShape& shape, const BatchNormStatistics& args, void* workspace, void* stream) {
  using A = accumulate_t<T>;
  BatchNormStatisticsOp<T, kAdd> op{
      {static_cast<const T*>(args.x)},
      static_cast<T*>(args.sum),
      static_cast<A*>(args.mean),
      static_cast<A*>(args.variance)};
  if constexpr (kAdd) {
    op.in[1] = static_cast<const T*>(args.addend);
  }
  return reduce_batch(op, shape, aligned(args.x, args.addend, args.sum), workspace, stream);
}

// The workspace is the same with and without an addend.
template <typename T>
using WithoutAddend = BatchNormStatisticsOp<T, false>;

}  // namespace

int64_t batch_norm_statistics_workspace(DType dtype, const FeatureShape& shape) {
  return batch_workspace_of<WithoutAddend>(dtype, shape);
}

int batch_norm_statistics(
    DType dtype,
    const FeatureShape& shape,
    const BatchNormStatistics& args,
    void* workspace,
    void* stream) {
  int error = cudaSuccess;
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    error = args.addend ? statistics<T, true>(shape, args, workspace, stream)
                        : statistics<T, false>(shape, args, workspace, stream);
  });
  return error;
}

}  // namespace ran::cuda
