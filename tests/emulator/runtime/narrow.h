// Included before all else in the kind "narrow", where sources.py writes EMULATOR_NARROW for a
// static_cast to an integer of 32 bits: a cast that loses the value is reported.
#pragma once

#include <type_traits>

namespace emulator {

void narrowed(const char* file, int line, long long value);

template <typename To, typename From>
constexpr To narrow(From x, const char* file, int line) {
  const auto to = static_cast<To>(x);
  if constexpr (std::is_integral_v<From>) {
    if (static_cast<From>(to) != x || (to < To{}) != (x < From{})) {
      narrowed(file, line, static_cast<long long>(x));
    }
  }
  return to;
}

}  // namespace emulator

#define EMULATOR_NARROW(To, ...) ::emulator::narrow<To>((__VA_ARGS__), __FILE__, __LINE__)
