// Every launcher of csrc/cuda behind one signature, for ctypes: LAUNCHER(name) and, where it has
// one, WORKSPACE(name). `sizes` are its integers and flags and `buffers` its pointers, both in the
// order that launchers.py names them, with the workspace last. A launcher whose signature changes
// changes its line here.
#include "add_affine_relu.h"
#include "attention_gate.h"
#include "batch_norm.h"
#include "cbam.h"
#include "upsample.h"

using namespace ran;

#define LAUNCHER(name) \
  extern "C" int launch_##name(DType dtype, const int64_t* sizes, void* const* buffers)
#define WORKSPACE(name)                                                            \
  extern "C" int64_t workspace_##name(DType dtype, const int64_t* sizes) {         \
    return cuda::name##_workspace(dtype, features(sizes));                         \
  }

namespace {

constexpr void* kStream = nullptr;

// n, c, hw, channels_last
FeatureShape features(const int64_t* s) {
  return {s[0], s[1], s[2], s[3] != 0};
}
// activation, outer, members, inner; then: residual
GateShape gate(const int64_t* s) {
  return {static_cast<Activation>(s[0]), s[1], s[2], s[3]};
}
// n, channels, h, w, height, width, align_corners, channels_last
UpsampleShape images(const int64_t* s) {
  return {s[0], s[1], s[2], s[3], s[4], s[5], s[6] != 0, s[7] != 0};
}
// mean, variance, weight, bias
BatchNormChannels norm(void* const* b) {
  return {b[0], b[1], b[2], b[3], 1e-5};
}
int32_t* indices(void* buffer) {
  return static_cast<int32_t*>(buffer);
}

}  // namespace

LAUNCHER(attention_gate) {
  const auto* b = buffers;
  return cuda::attention_gate(dtype, gate(sizes), {b[0], b[1], b[2], sizes[4] != 0}, kStream);
}
LAUNCHER(attention_gate_backward) {
  const auto* b = buffers;
  return cuda::attention_gate_backward(
      dtype, gate(sizes), {b[0], b[1], b[2], b[3], b[4], sizes[4] != 0}, kStream);
}

LAUNCHER(upsample) {
  const auto* b = buffers;
  return cuda::upsample(dtype, {b[0], b[1], b[2], images(sizes)}, kStream);
}
LAUNCHER(upsample_backward) {
  const auto* b = buffers;
  return cuda::upsample_backward(dtype, {b[0], b[1], images(sizes)}, kStream);
}

WORKSPACE(channel_pool)
LAUNCHER(channel_pool) {
  const auto* b = buffers;
  return cuda::channel_pool(
      dtype, features(sizes), {b[0], b[1], b[2], indices(b[3])}, b[4], kStream);
}
WORKSPACE(spatial_pool)
LAUNCHER(spatial_pool) {
  const auto* b = buffers;
  return cuda::spatial_pool(
      dtype, features(sizes), {b[0], b[1], b[2], indices(b[3])}, b[4], kStream);
}

LAUNCHER(cbam_gate) {
  const auto* b = buffers;
  return cuda::cbam_gate(
      dtype, features(sizes), {b[0], b[1], b[2], b[3], b[4], sizes[4] != 0}, kStream);
}
WORKSPACE(cbam_grad_spatial)
LAUNCHER(cbam_grad_spatial) {
  const auto* b = buffers;
  return cuda::cbam_grad_spatial(
      dtype, features(sizes), {b[0], b[1], b[2], b[3], b[4], b[5], b[6]}, b[7], kStream);
}
WORKSPACE(cbam_grad_channel)
LAUNCHER(cbam_grad_channel) {
  const auto* b = buffers;
  return cuda::cbam_grad_channel(
      dtype,
      features(sizes),
      {{b[0], b[1], b[2], indices(b[3])}, b[4], b[5], b[6]},
      b[7],
      kStream);
}
LAUNCHER(cbam_grad_x) {
  const auto* b = buffers;
  return cuda::cbam_grad_x(
      dtype,
      features(sizes),
      {{b[0], b[1], b[2], indices(b[3])}, b[4], b[5], b[6], indices(b[7]), b[8]},
      kStream);
}

LAUNCHER(add_affine_relu) {
  const auto* b = buffers;
  return cuda::add_affine_relu(
      dtype, features(sizes), {b[0], b[1], b[2], b[3], b[4], b[5]}, kStream);
}

WORKSPACE(batch_norm_statistics)
LAUNCHER(batch_norm_statistics) {
  const auto* b = buffers;
  return cuda::batch_norm_statistics(
      dtype, features(sizes), {b[0], b[1], b[2], b[3], b[4]}, b[5], kStream);
}
LAUNCHER(batch_norm_apply) {
  const auto* b = buffers;
  return cuda::batch_norm_apply(
      dtype, features(sizes), {b[0], b[1], norm(b + 2), b[6], sizes[4] != 0}, kStream);
}
WORKSPACE(batch_norm_reduce)
LAUNCHER(batch_norm_reduce) {
  const auto* b = buffers;
  return cuda::batch_norm_reduce(
      dtype,
      features(sizes),
      {b[0], b[1], b[2], norm(b + 3), b[7], b[8], b[9], sizes[4] != 0},
      b[10],
      kStream);
}
LAUNCHER(batch_norm_grad) {
  const auto* b = buffers;
  const auto shape = features(sizes);
  return cuda::batch_norm_grad(
      dtype,
      shape,
      {b[0], b[1], b[2], norm(b + 3), b[7], b[8], shape.n * shape.hw, b[9], sizes[4] != 0},
      kStream);
}
