#include "../attention_gate.h"
#include "attention_gate_groups.cuh"
#include "kernel.cuh"

namespace ran {

const char* cuda_error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

namespace cuda {
namespace {

template <typename T, int N>
__global__ void __launch_bounds__(kThreads) attention_gate_kernel(
    const T* __restrict__ logits,
    const T* __restrict__ trunk,
    T* __restrict__ out,
    int64_t n,
    accumulate_t<T> offset) {
  using P = Pack<T, N>;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * N;
  if (first + N <= n) {
    const P l = *reinterpret_cast<const P*>(logits + first);
    const P t = *reinterpret_cast<const P*>(trunk + first);
    P o;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      o.item[i] = narrow<T>(gate(sigmoid(widen(l.item[i])), widen(t.item[i]), offset));
    }
    *reinterpret_cast<P*>(out + first) = o;
  } else {
    for (int64_t i = first; i < n; ++i) {
      out[i] = narrow<T>(gate(sigmoid(widen(logits[i])), widen(trunk[i]), offset));
    }
  }
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads) attention_gate_backward_kernel(
    const T* __restrict__ grad,
    const T* __restrict__ logits,
    const T* __restrict__ trunk,
    T* __restrict__ grad_logits,
    T* __restrict__ grad_trunk,
    int64_t n,
    accumulate_t<T> offset) {
  using A = accumulate_t<T>;
  using P = Pack<T, N>;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * N;
  if (first + N <= n) {
    const P g = *reinterpret_cast<const P*>(grad + first);
    const P l = *reinterpret_cast<const P*>(logits + first);
    const P t = *reinterpret_cast<const P*>(trunk + first);
    P gl;
    P gt;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const A incoming = widen(g.item[i]);
      const A mask = sigmoid(widen(l.item[i]));
      gl.item[i] = narrow<T>(gate_grad_sigmoid(incoming, mask, widen(t.item[i]), A(1)));
      gt.item[i] = narrow<T>(gate_grad_trunk(incoming, mask, offset));
    }
    *reinterpret_cast<P*>(grad_logits + first) = gl;
    *reinterpret_cast<P*>(grad_trunk + first) = gt;
  } else {
    for (int64_t i = first; i < n; ++i) {
      const A incoming = widen(grad[i]);
      const A mask = sigmoid(widen(logits[i]));
      grad_logits[i] = narrow<T>(gate_grad_sigmoid(incoming, mask, widen(trunk[i]), A(1)));
      grad_trunk[i] = narrow<T>(gate_grad_trunk(incoming, mask, offset));
    }
  }
}

template <typename T, int N>
int launch(const AttentionGateForward& a, int64_t n, cudaStream_t stream) {
  attention_gate_kernel<T, N><<<blocks_for((n + N - 1) / N), kThreads, 0, stream>>>(
      static_cast<const T*>(a.logits),
      static_cast<const T*>(a.trunk),
      static_cast<T*>(a.out),
      n,
      a.residual);
  return cudaGetLastError();
}

template <typename T, int N>
int launch(const AttentionGateBackward& a, int64_t n, cudaStream_t stream) {
  attention_gate_backward_kernel<T, N><<<blocks_for((n + N - 1) / N), kThreads, 0, stream>>>(
      static_cast<const T*>(a.grad),
      static_cast<const T*>(a.logits),
      static_cast<const T*>(a.trunk),
      static_cast<T*>(a.grad_logits),
      static_cast<T*>(a.grad_trunk),
      n,
      a.residual);
  return cudaGetLastError();
}

template <typename Args>
int launch(DType dtype, const Args& args, int64_t n, bool packed, cudaStream_t stream) {
  int error = cudaSuccess;
  dispatch(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    error = packed ? launch<T, kPack<T>>(args, n, stream) : launch<T, 1>(args, n, stream);
  });
  return error;
}

}  // namespace

int attention_gate(
    DType dtype, const GateShape& shape, const AttentionGateForward& a, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  if (shape.activation != Activation::kMixed) {
    return attention_gate_groups(dtype, shape, a, s);
  }
  return launch(dtype, a, shape.numel(), aligned(a.logits, a.trunk, a.out), s);
}

int attention_gate_backward(
    DType dtype, const GateShape& shape, const AttentionGateBackward& a, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  if (shape.activation != Activation::kMixed) {
    return attention_gate_groups_backward(dtype, shape, a, s);
  }
  const bool packed = aligned(a.grad, a.logits, a.trunk, a.grad_logits, a.grad_trunk);
  return launch(dtype, a, shape.numel(), packed, s);
}

}  // namespace cuda
}  // namespace ran
