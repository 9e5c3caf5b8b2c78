#include "narrow.h"

#include <string>

#include "report.h"

void emulator::narrowed(const char* file, int line, long long value) {
  report(
      "a cast loses the value " + std::to_string(value) + ", " + file + ":" + std::to_string(line) +
      here());
}
