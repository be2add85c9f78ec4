// The least that runs the design: two evaluations per cycle and a memory that answers in the next
// one. No DRAM, no rules checked, nothing counted: what a simulation costs besides the Verilated
// design is measured against this. Compiled in place of sim/harness.cpp, with the same ports.h.

#include <cstdint>
#include <cstring>
#include <memory>

#include "Vtop.h"
#include "ports.h"
#include "verilated.h"

namespace {

constexpr int kPorts = TOKENFABRIC_PORT_COUNT;
constexpr int kBeatBytes = TOKENFABRIC_PORT_BYTES;
constexpr unsigned kBursts = 64;  // more than the design has in flight

struct Burst {
  uint8_t* at;
  int beats;
};

struct Queue {
  Burst bursts[kBursts];
  unsigned head = 0, tail = 0;

  bool empty() const { return head == tail; }
  Burst& first() { return bursts[head % kBursts]; }
  void push(uint8_t* at, int beats) { bursts[tail++ % kBursts] = {at, beats}; }
  void next() {
    first().at += kBeatBytes;
    if (--first().beats == 0) ++head;
  }
};

class Bare {
 public:
  Bare(uint64_t base, uint64_t size) : memory_(new uint8_t[size]()), base_(base), top_(&context_) {
    top_.rst = 1;
    for (int i = 0; i < 8; ++i) step();
    top_.rst = 0;
  }

  ~Bare() { Verilated::threadContextp(&context_); }  // as in the harness

  int64_t run(int64_t cycles) {
    const int64_t start = cycle_;
    while (cycle_ - start < cycles && !top_.irq) step();
    return cycle_ - start;
  }

  uint32_t transact(bool write, uint32_t address, uint32_t data) {
    top_.s_axi_ctrl_awaddr = top_.s_axi_ctrl_araddr = address;
    top_.s_axi_ctrl_wdata = data;
    top_.s_axi_ctrl_wstrb = 15;
    top_.s_axi_ctrl_awvalid = top_.s_axi_ctrl_wvalid = write;
    top_.s_axi_ctrl_arvalid = !write;
    top_.s_axi_ctrl_bready = top_.s_axi_ctrl_rready = 1;
    lite_taken_ = lite_done_ = false;
    while (!lite_done_) {
      step();
      if (lite_taken_)
        top_.s_axi_ctrl_awvalid = top_.s_axi_ctrl_wvalid = top_.s_axi_ctrl_arvalid = 0;
    }
    return answer_;
  }

  uint8_t* memory() { return memory_.get(); }
  int64_t cycle() const { return cycle_; }

 private:
  void step() {
#define DRIVE(i)                                                             \
  top_.m_axi_hp##i##_arready = 1;                                            \
  top_.m_axi_hp##i##_rvalid = !reads_[i].empty();                            \
  if (!reads_[i].empty()) {                                                  \
    top_.m_axi_hp##i##_rlast = reads_[i].first().beats == 1;                 \
    std::memcpy(&top_.m_axi_hp##i##_rdata, reads_[i].first().at, kBeatBytes); \
  }
    TOKENFABRIC_PORTS(DRIVE)
    top_.m_axi_hp0_awready = 1;
    top_.m_axi_hp0_wready = !writes_.empty();
    top_.m_axi_hp0_bvalid = answers_ != 0;
    top_.clk = 0;
    top_.eval();
#define SAMPLE(i)                                                                      \
  if (top_.m_axi_hp##i##_rvalid && top_.m_axi_hp##i##_rready) reads_[i].next();         \
  if (top_.m_axi_hp##i##_arvalid)                                                       \
    reads_[i].push(at(top_.m_axi_hp##i##_araddr), top_.m_axi_hp##i##_arlen + 1);
    TOKENFABRIC_PORTS(SAMPLE)
    sample_writes();
    if ((top_.s_axi_ctrl_awvalid & top_.s_axi_ctrl_awready) |
        (top_.s_axi_ctrl_arvalid & top_.s_axi_ctrl_arready))
      lite_taken_ = true;
    if (top_.s_axi_ctrl_bvalid | top_.s_axi_ctrl_rvalid) {
      lite_done_ = true;
      answer_ = top_.s_axi_ctrl_rdata;
    }
    top_.clk = 1;
    top_.eval();
    ++cycle_;
  }

  void sample_writes() {
    if (top_.m_axi_hp0_bvalid && top_.m_axi_hp0_bready) --answers_;
    if (top_.m_axi_hp0_wvalid && top_.m_axi_hp0_wready) {
      uint8_t data[kBeatBytes];
      uint32_t strobe = 0;
      std::memcpy(data, &top_.m_axi_hp0_wdata, kBeatBytes);
      std::memcpy(&strobe, &top_.m_axi_hp0_wstrb, kBeatBytes / 8);
      for (int i = 0; i < kBeatBytes; ++i)
        if (strobe >> i & 1) writes_.first().at[i] = data[i];
      if (writes_.first().beats == 1) ++answers_;
      writes_.next();
    }
    if (top_.m_axi_hp0_awvalid) writes_.push(at(top_.m_axi_hp0_awaddr), top_.m_axi_hp0_awlen + 1);
  }

  uint8_t* at(uint64_t address) { return memory_.get() + (address - base_); }

  const std::unique_ptr<uint8_t[]> memory_;
  const uint64_t base_;
  VerilatedContext context_;
  Vtop top_;
  Queue reads_[kPorts], writes_;
  int answers_ = 0;
  bool lite_taken_ = false, lite_done_ = false;
  uint32_t answer_ = 0;
  int64_t cycle_ = 0;
};

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

void* bare_open(uint64_t base, uint64_t size) { return new Bare(base, size); }
void bare_close(void* h) { delete static_cast<Bare*>(h); }
uint8_t* bare_memory(void* h) { return static_cast<Bare*>(h)->memory(); }
int64_t bare_cycle(void* h) { return static_cast<Bare*>(h)->cycle(); }
int64_t tf_run(void* h, int64_t cycles) { return static_cast<Bare*>(h)->run(cycles); }
uint32_t bare_transact(void* h, int write, uint32_t address, uint32_t data) {
  return static_cast<Bare*>(h)->transact(write, address, data);
}

}  // extern "C"
#pragma GCC visibility pop
