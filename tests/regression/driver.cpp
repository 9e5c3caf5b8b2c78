// Runs one CPU kernel once, without PyTorch, for valgrind to count its instructions.
// Usage: driver CASE; without a case it prints the names of all.
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "../../csrc/add_affine_relu.h"
#include "../../csrc/attention_gate.h"
#include "../../csrc/batch_norm.h"
#include "../../csrc/cbam.h"
#include "../../csrc/upsample.h"

// What the kernels need of PyTorch: its thread pool, here of one thread.
extern "C" int torch_parallel_for(
    int64_t begin, int64_t end, int64_t, void (*f)(int64_t, int64_t, void*), void* context) {
  f(begin, end, context);
  return 0;
}
extern "C" uint64_t aoti_torch_abi_version() {
  return 0;
}

namespace {

constexpr int64_t kN = 1, kC = 64, kH = 28, kHW = kH * kH, kSize = kN * kC * kHW;
constexpr ran::DType kFloat = ran::DType::kFloat32;

// Small numbers that repeat after a prime length: maxima move about, and nothing overflows.
std::vector<float> numbers(int64_t n, int64_t seed) {
  std::vector<float> values(n);
  for (int64_t i = 0; i < n; ++i) {
    values[i] = static_cast<float>((i + seed) * 7919 % 1009) / 504.5f - 1.f;
  }
  return values;
}

std::vector<float> a = numbers(kSize, 1), b = numbers(kSize, 2), c = numbers(kSize, 3);
std::vector<float> out1(kSize), out2(kSize), channel = numbers(kN * kC, 4),
    channel2 = numbers(kN * kC, 5), variance(kC, 0.5f), sums(2 * kC),
    maps = numbers(kN * 2 * kHW, 6), maps2(kN * 2 * kHW);
std::vector<int32_t> channel_index(kN * kC, 5), spatial_index(kN * kHW, 7);

ran::GateShape gate_shape(ran::Activation activation, bool channels_last) {
  switch (activation) {
    case ran::Activation::kMixed:
      return {activation, 1, kSize, 1};
    case ran::Activation::kChannel:
      return channels_last ? ran::GateShape{activation, kN * kHW, kC, 1}
                           : ran::GateShape{activation, kN, kC, kHW};
    default:
      return channels_last ? ran::GateShape{activation, kN, kHW, kC}
                           : ran::GateShape{activation, kN * kC, kHW, 1};
  }
}

using Case = std::function<void()>;

void add_cases(std::map<std::string, Case>& cases, bool last) {
  using namespace ran;
  const std::string layout = last ? "/channels_last" : "/contiguous";
  const FeatureShape features{kN, kC, kHW, last};
  const std::pair<const char*, Activation> activations[] = {
      {"mixed", Activation::kMixed},
      {"channel", Activation::kChannel},
      {"spatial", Activation::kSpatial}};
  for (const auto& [name, activation] : activations) {
    const GateShape shape = gate_shape(activation, last);
    const std::string end = std::string("[") + name + "]" + layout;
    cases["attention_gate" + end] = [=] {
      cpu::attention_gate(kFloat, shape, {a.data(), b.data(), out1.data(), true});
    };
    cases["attention_gate_backward" + end] = [=] {
      cpu::attention_gate_backward(
          kFloat, shape, {c.data(), a.data(), b.data(), out1.data(), out2.data(), true});
    };
  }
  cases["add_affine_relu" + layout] = [=] {
    cpu::add_affine_relu(
        kFloat,
        features,
        {a.data(), b.data(), channel.data(), channel2.data(), out1.data(), out2.data()});
  };
  cases["affine_relu" + layout] = [=] {
    cpu::add_affine_relu(
        kFloat,
        features,
        {a.data(), nullptr, channel.data(), channel2.data(), nullptr, out1.data()});
  };
  const UpsampleShape up{kN, kC, kH / 2, kH / 2, kH, kH, true, last};
  cases["upsample_add" + layout] = [=] {
    cpu::upsample(kFloat, {a.data(), b.data(), out1.data(), up})(0, kN * kH * (last ? 1 : kC));
  };
  cases["upsample_backward" + layout] = [=] {
    cpu::upsample_backward(kFloat, {b.data(), out1.data(), up})(0, kN * kH / 2 * (last ? 1 : kC));
  };
  cases["channel_pool" + layout] = [=] {
    cpu::channel_pool(
        kFloat, features, {a.data(), out1.data(), out2.data(), channel_index.data()});
  };
  cases["spatial_pool" + layout] = [=] {
    cpu::spatial_pool(
        kFloat, features, {a.data(), channel.data(), maps2.data(), spatial_index.data()});
  };
  cases["cbam_gate" + layout] = [=] {
    cpu::cbam_gate(
        kFloat,
        features,
        {a.data(), channel.data(), maps.data(), b.data(), out1.data(), true});
  };
  cases["cbam_grad_spatial" + layout] = [=] {
    cpu::cbam_grad_spatial(
        kFloat,
        features,
        {a.data(), b.data(), channel.data(), maps.data(), c.data(), maps2.data(), out1.data()});
  };
  const CbamIncoming incoming{a.data(), maps.data(), maps.data(), spatial_index.data()};
  cases["cbam_grad_channel" + layout] = [=] {
    cpu::cbam_grad_channel(kFloat, features, {incoming, b.data(), channel.data(), out1.data()});
  };
  cases["cbam_grad_x" + layout] = [=] {
    cpu::cbam_grad_x(
        kFloat,
        features,
        {incoming,
         channel.data(),
         channel2.data(),
         channel2.data(),
         channel_index.data(),
         out1.data()});
  };
  const BatchNormChannels norm{
      channel.data(), variance.data(), channel2.data(), channel.data(), 1e-5};
  float* other = sums.data() + kC;
  cases["batch_norm_statistics" + layout] = [=] {
    cpu::batch_norm_statistics(
        kFloat, features, {a.data(), nullptr, nullptr, sums.data(), other});
  };
  cases["batch_norm_statistics_of_sum" + layout] = [=] {
    cpu::batch_norm_statistics(
        kFloat, features, {a.data(), b.data(), out1.data(), sums.data(), other});
  };
  cases["batch_norm_apply" + layout] = [=] {
    cpu::batch_norm_apply(kFloat, features, {a.data(), nullptr, norm, out1.data(), true});
  };
  cases["batch_norm_apply_shortcut" + layout] = [=] {
    cpu::batch_norm_apply(kFloat, features, {a.data(), b.data(), norm, out1.data(), true});
  };
  cases["batch_norm_reduce" + layout] = [=] {
    cpu::batch_norm_reduce(
        kFloat,
        features,
        {a.data(), b.data(), nullptr, norm, nullptr, sums.data(), other, true});
  };
  cases["batch_norm_reduce_masked" + layout] = [=] {
    cpu::batch_norm_reduce(
        kFloat,
        features,
        {a.data(), b.data(), c.data(), norm, out1.data(), sums.data(), other, true});
  };
  cases["batch_norm_grad" + layout] = [=] {
    cpu::batch_norm_grad(
        kFloat,
        features,
        {a.data(), b.data(), nullptr, norm, channel.data(), channel2.data(), kHW, out1.data(), true});
  };
  cases["batch_norm_grad_added" + layout] = [=] {
    cpu::batch_norm_grad(
        kFloat,
        features,
        {a.data(), b.data(), c.data(), norm, channel.data(), channel2.data(), kHW, out1.data(), true});
  };
}

}  // namespace

// What valgrind counts: it is told this name.
extern "C" __attribute__((noinline)) void measured(const Case& run) {
  run();
  asm volatile("");  // not a tail call, which valgrind would not see return
}

int main(int argc, char** argv) {
  std::map<std::string, Case> cases;
  add_cases(cases, false);
  add_cases(cases, true);
  if (argc == 1) {
    for (const auto& [name, run] : cases) {
      std::printf("%s\n", name.c_str());
    }
    return 0;
  }
  for (int i = 1; i < argc; ++i) {
    if (!cases.count(argv[i])) {
      std::fprintf(stderr, "driver: no case %s\n", argv[i]);
      return 2;
    }
    measured(cases[argv[i]]);
  }
  return 0;
}
