// What the ports of the simulated design share: time, the DRAM model behind them, the first rule of
// AXI that was broken, and a random generator that holds channels back.

#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "dram.h"
#include "ports.h"

namespace tokenfabric {

constexpr int kPorts = TOKENFABRIC_PORT_COUNT;
constexpr int kBeatBytes = TOKENFABRIC_PORT_BYTES;
constexpr size_t kMaxBusErrors = 16;  // described; all are counted

struct Bus {
  Bus(const DramParameters& parameters, uint8_t* memory, uint64_t base, uint64_t size)
      : dram(parameters, memory, base, size, kPorts, kBeatBytes) {}

  void throttle(uint64_t seed, int stalls_of_256) {
    random_ = seed * 0x9E3779B97F4A7C15u + 1;
    stalls_ = stalls_of_256;
  }

  // True in a share of the cycles while throttled: the channel is held back.
  bool held() {
    if (stalls_ == 0) return false;
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return static_cast<int>(random_ >> 32 & 255) < stalls_;
  }

  // Of the next read bursts of all ports the one of this number gets an error response; 0 = none.
  void fail_read(int64_t number) { fail_read_ = number > 0 ? reads_ + number : 0; }

  // Called once for each read burst.
  bool read_fails() { return ++reads_ == fail_read_; }

  // The response to a burst: an error if it leaves the memory.
  uint8_t check_window(int port, const char* what, uint32_t address, int beats) {
    if (dram.inside(address, static_cast<uint64_t>(beats) * kBeatBytes)) return kOkay;
    if (bus_errors.size() < kMaxBusErrors) {
      char text[128];
      std::snprintf(text, sizeof text, "cycle %lld: m_axi_hp%d: %s of %d bytes at 0x%08x",
                    static_cast<long long>(cycle), port, what, beats * kBeatBytes, address);
      bus_errors.push_back(text);
    }
    return kDecodeError;
  }

  // Only the first broken rule is kept: what follows one is often its consequence.
  void fail(const char* format, ...) __attribute__((format(printf, 2, 3))) {
    if (!error.empty()) return;
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    error = "cycle " + std::to_string(cycle) + ": " + text;
  }

  Dram dram;
  int64_t cycle = 0;
  std::string error;  // the first broken rule
  std::vector<std::string> bus_errors;

 private:
  int64_t reads_ = 0;
  int64_t fail_read_ = 0;
  int stalls_ = 0;  // of 256 cycles
  uint64_t random_ = 1;
};

}  // namespace tokenfabric
