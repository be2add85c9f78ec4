// Runs the Verilated `top` of a board with an SDRAM, connected by a serial line: rx and tx, 8N1.
// tests/rigs/serial_line.py compiles it together with the design.

#include <cstdint>
#include <deque>

#include "Vtop.h"
#include "sdram.h"
#include "verilated.h"

namespace tokenfabric {
namespace {

constexpr int kResetCycles = 8;
constexpr int kBits = 10;  // start, eight of data, stop

class Line {
 public:
  Line(uint32_t divisor, const SdramParameters& sdram) : divisor_(divisor), sdram_(sdram) {
    top_.rst = 1;
    top_.rx = 1;
    for (int i = 0; i < kResetCycles; ++i) edge();
    top_.rst = 0;
  }

  ~Line() {
    Verilated::threadContextp(&context_);  // as in the harness
    top_.final();
  }

  // Puts the bytes on the line, one after the other.
  void write(const uint8_t* data, uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) {
      const uint32_t frame = (1u << (kBits - 1)) | (data[i] << 1);
      for (int bit = 0; bit < kBits; ++bit) {
        top_.rx = (frame >> bit) & 1;
        for (uint32_t cycle = 0; cycle < divisor_; ++cycle) step();
      }
    }
  }

  // Lets time pass until there are so many bytes, or nothing has come for so many cycles.
  uint64_t read(uint8_t* data, uint64_t count, uint64_t patience) {
    quiet_ = 0;
    while (received_.size() < count && quiet_ < patience) step();
    uint64_t taken = 0;
    for (; taken < count && !received_.empty(); ++taken) {
      data[taken] = received_.front();
      received_.pop_front();
    }
    return taken;
  }

  void run(uint64_t cycles) {
    while (cycles--) step();
  }

  uint64_t cycles() const { return cycle_; }

  Sdram& sdram() { return sdram_; }

 private:
  void edge() {
    top_.clk = 0;
    top_.eval();
    top_.clk = 1;
    top_.eval();
    top_.sdram_dq_i = sdram_.clock({top_.sdram_command, top_.sdram_bank, top_.sdram_address,
                                    top_.sdram_mask, top_.sdram_dq_o, top_.sdram_dq_oe});
    ++cycle_;
  }

  // One cycle, and what the design sends: sampled in the middle of each bit.
  void step() {
    edge();
    ++quiet_;
    if (timer_) {
      if (--timer_) return;
      if (bits_ < kBits - 1) {
        shift_ = (shift_ >> 1) | (top_.tx << (kBits - 2));
        ++bits_;
        timer_ = divisor_;
      }
      if (bits_ == kBits - 1) {
        if (shift_ >> (kBits - 2)) received_.push_back(shift_ & 0xFF);
        quiet_ = 0;
        timer_ = 0;
      }
    } else if (!top_.tx) {
      timer_ = divisor_ + divisor_ / 2;
      bits_ = 0;
      shift_ = 0;
    }
  }

  VerilatedContext context_;
  Vtop top_{&context_};
  const uint32_t divisor_;
  Sdram sdram_;
  uint64_t cycle_ = 0, quiet_ = 0;
  uint32_t timer_ = 0, bits_ = 0, shift_ = 0;
  std::deque<uint8_t> received_;
};

}  // namespace
}  // namespace tokenfabric

using tokenfabric::Line;
using tokenfabric::SdramParameters;

#define TF_API extern "C" __attribute__((visibility("default")))

TF_API void* tf_line_open(uint32_t divisor, const SdramParameters* sdram) {
  return new Line(divisor, *sdram);
}
TF_API void tf_line_close(void* line) { delete static_cast<Line*>(line); }
TF_API void tf_line_write(void* line, const uint8_t* data, uint64_t count) {
  static_cast<Line*>(line)->write(data, count);
}
TF_API uint64_t tf_line_read(void* line, uint8_t* data, uint64_t count, uint64_t patience) {
  return static_cast<Line*>(line)->read(data, count, patience);
}
TF_API void tf_line_run(void* line, uint64_t cycles) { static_cast<Line*>(line)->run(cycles); }
TF_API uint64_t tf_line_cycles(void* line) { return static_cast<Line*>(line)->cycles(); }
TF_API const char* tf_line_error(void* line) { return static_cast<Line*>(line)->sdram().error(); }
