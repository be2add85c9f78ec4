// Runs the Verilated `top`: AXI slaves on its memory ports, an AXI4-Lite master on its registers,
// the DRAM model behind them, and a check of the AXI rules on every channel (bus.h, memory_port.h,
// register_port.h, dram.h). It moves bytes and knows nothing of what they mean. sim/verilator.py
// compiles it together with the design and with ports.h, which names the ports:
//   #define TOKENFABRIC_PORTS(X) X(0) X(1)    X(i) for each m_axi_hp<i>; port 0 also writes
//   #define TOKENFABRIC_PORT_COUNT 2
//   #define TOKENFABRIC_PORT_BYTES 8
//   #define TOKENFABRIC_PROBES(X) X(top__DOT__pc)    X(name) for each signal inside the design
//   #define TOKENFABRIC_PROBE_COUNT 1                that a recording keeps
//
// One cycle, in this order:
//   1. inputs are driven from the slaves' own state, never from this cycle's outputs,
//   2. clk = 0, eval: combinational paths from those inputs to outputs settle,
//   3. outputs are sampled; valid && ready on a channel is a transfer, as the next edge sees it,
//   4. clk = 1, eval: the edge.
// Because of 1 there is no loop through the harness, and because of 2 an output that depends on
// an input in the same cycle (rready on rvalid, arvalid on rvalid, ...) is sampled correctly.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "Vtop.h"
#include "Vtop___024root.h"
#include "bus.h"
#include "memory_port.h"
#include "ports.h"
#include "register_port.h"
#include "verilated.h"
#if VM_TRACE
#include "verilated_vcd_c.h"
#endif

namespace tokenfabric {
namespace {

constexpr int kResetCycles = 8;
constexpr int kProbes = TOKENFABRIC_PROBE_COUNT;

// A cycle and the values of the probes from then on, as sim/verilator.py reads them.
struct Probed {
  int64_t words[1 + kProbes];
};

class Harness {
 public:
  Harness(const DramParameters& dram, uint64_t base, uint64_t size)
      : memory_(static_cast<uint8_t*>(std::calloc(size, 1)), &std::free),
        bus_(dram, memory_.get(), base, size),
        context_(),
        top_(&context_) {
    if (memory_ == nullptr) throw std::bad_alloc();
#if VM_TRACE
    context_.traceEverOn(true);
#endif
    for (int i = 0; i < kPorts; ++i) {
      ports_[i].index = i;
      ports_[i].dram = &bus_.dram.port(i);
    }
    reset();
  }

  ~Harness() {
    trace(nullptr);
    // The model's destructor asks for the thread's context, which may be that of another device,
    // used last and gone by now.
    Verilated::threadContextp(&context_);
    top_.final();
  }

  // The fabric's reset. The memory's ports are not part of the fabric: they go on with what they
  // were asked for.
  void reset() {
    registers_.clear();
    bus_.error.clear();
    top_.rst = 1;
    for (int i = 0; i < kResetCycles; ++i) step<true>();
    top_.rst = 0;
  }

  // Steps until `irq` (if asked for), a broken rule, or `cycles`; returns the cycles stepped.
  int64_t run(int64_t cycles, bool until_irq) {
    const int64_t start = bus_.cycle;
    while (bus_.cycle - start < cycles && bus_.error.empty()) {
      if (until_irq && top_.irq) break;
      step<false>();
    }
    return bus_.cycle - start;
  }

  // 0 = done, 1 = no answer within `cycles`, 2 = a rule was broken.
  int transact(bool write, uint32_t address, uint32_t* data, int64_t cycles, int* response) {
    registers_.begin(write, address, *data);
    for (const int64_t start = bus_.cycle; !registers_.done();) {
      if (!bus_.error.empty()) return 2;
      if (bus_.cycle - start >= cycles) return 1;
      step<true>();
    }
    if (!write) *data = registers_.data();
    *response = registers_.response();
    registers_.clear();
    step<true>();  // takes the readys down
    return bus_.error.empty() ? 0 : 2;
  }

  bool trace(const char* path) {
#if VM_TRACE
    if (trace_) trace_->close();
    trace_.reset();
    if (path == nullptr) return true;
    trace_ = std::make_unique<VerilatedVcdC>();
    top_.trace(trace_.get(), 99);
    trace_->open(path);
    return trace_->isOpen();
#else
    return path == nullptr;
#endif
  }

  void throttle(uint64_t seed, int stalls_of_256) { bus_.throttle(seed, stalls_of_256); }
  void stick(int port, bool stuck) { ports_[port].stuck = stuck; }
  void fail_read(int64_t number) { bus_.fail_read(number); }

  uint8_t* memory() { return memory_.get(); }
  int64_t cycle() const { return bus_.cycle; }
  bool irq() const { return top_.irq; }
  // Bursts that have been asked for, or begun to be, and not been answered.
  uint64_t in_flight() const {
    uint64_t count = 0;
    for (const Port& port : ports_) {
      const DramPort& dram = *port.dram;
      count += dram.reads_accepted - dram.reads_returned;
      count += std::max(dram.write_addresses, dram.write_bodies) - dram.writes_returned;
    }
    return count;
  }
  const char* error() const { return bus_.error.c_str(); }
  const Counters& counters(int port) const { return ports_[port].counters; }
  const std::vector<std::string>& bus_errors() const { return bus_.bus_errors; }
  const std::vector<BusUse>& uses() const { return uses_; }
  const std::vector<Probed>& probed() const { return probed_; }

  // Begins a recording of the bus and the probes, or ends it and keeps it.
  void record(bool on) {
    if (on) {
      uses_.clear();
      probed_.clear();
    }
    recording_ = on;
    bus_.dram.record(on ? &uses_ : nullptr);
  }

 private:
  template <bool kLite>
  void step() {
    bus_.dram.tick(bus_.cycle);
    for (ReadChannels& channels : reads_) channels.drive();
    writes_.drive();
    if (kLite) registers_.drive();
    top_.clk = 0;
    top_.eval();
#if VM_TRACE
    if (trace_) trace_->dump(static_cast<uint64_t>(2 * bus_.cycle));
#endif
    for (ReadChannels& channels : reads_) channels.sample();
    writes_.sample();
    if (kLite) {
      registers_.sample();
    } else {
      registers_.check_silent();
    }
    if (recording_) probe();
    top_.clk = 1;
    top_.eval();
#if VM_TRACE
    if (trace_) trace_->dump(static_cast<uint64_t>(2 * bus_.cycle + 1));
#endif
    ++bus_.cycle;
  }

  void probe() {
#define TOKENFABRIC_PROBE(name) , top_.rootp->name
    const Probed now = {{bus_.cycle TOKENFABRIC_PROBES(TOKENFABRIC_PROBE)}};
#undef TOKENFABRIC_PROBE
    if (probed_.empty() ||
        std::memcmp(now.words + 1, probed_.back().words + 1, kProbes * sizeof now.words[0]))
      probed_.push_back(now);
  }

  const std::unique_ptr<uint8_t, decltype(&std::free)> memory_;  // untouched pages cost nothing
  Bus bus_;
  VerilatedContext context_;
  Vtop top_;
#if VM_TRACE
  std::unique_ptr<VerilatedVcdC> trace_;
#endif
  Port ports_[kPorts];
#define TOKENFABRIC_READS(i)                                                              \
  {bus_,                                                                                  \
   ports_[i],                                                                             \
   {top_.m_axi_hp##i##_arvalid, top_.m_axi_hp##i##_arready, top_.m_axi_hp##i##_arlen,     \
    top_.m_axi_hp##i##_arsize,  top_.m_axi_hp##i##_arburst, top_.m_axi_hp##i##_araddr,    \
    top_.m_axi_hp##i##_rvalid,  top_.m_axi_hp##i##_rready,  top_.m_axi_hp##i##_rresp,     \
    top_.m_axi_hp##i##_rlast,   &top_.m_axi_hp##i##_rdata}},
  ReadChannels reads_[kPorts] = {TOKENFABRIC_PORTS(TOKENFABRIC_READS)};
#undef TOKENFABRIC_READS
  WriteChannels writes_{bus_,
                        ports_[0],
                        {top_.m_axi_hp0_awvalid, top_.m_axi_hp0_awready, top_.m_axi_hp0_awlen,
                         top_.m_axi_hp0_awsize,  top_.m_axi_hp0_awburst, top_.m_axi_hp0_awaddr,
                         top_.m_axi_hp0_wvalid,  top_.m_axi_hp0_wready,  top_.m_axi_hp0_wlast,
                         &top_.m_axi_hp0_wdata,  &top_.m_axi_hp0_wstrb,  top_.m_axi_hp0_bvalid,
                         top_.m_axi_hp0_bready,  top_.m_axi_hp0_bresp}};
  RegisterPort registers_{bus_, top_};
  bool recording_ = false;
  std::vector<BusUse> uses_;
  std::vector<Probed> probed_;
};

}  // namespace
}  // namespace tokenfabric

// What sim/verilator.py calls. One handle, one thread.
#pragma GCC visibility push(default)  // all else is hidden, so that calls within are direct
extern "C" {

using tokenfabric::Harness;

void* tf_open(const tokenfabric::DramParameters* dram, uint64_t base, uint64_t size) try {
  return new Harness(*dram, base, size);
} catch (const std::bad_alloc&) {
  return nullptr;
}
void tf_close(void* h) { delete static_cast<Harness*>(h); }
int tf_ports() { return tokenfabric::kPorts; }
int tf_probes() { return tokenfabric::kProbes; }
int tf_port_bytes() { return tokenfabric::kBeatBytes; }
uint8_t* tf_memory(void* h) { return static_cast<Harness*>(h)->memory(); }
void tf_reset(void* h) { static_cast<Harness*>(h)->reset(); }
int64_t tf_run(void* h, int64_t cycles, int until_irq) {
  return static_cast<Harness*>(h)->run(cycles, until_irq);
}
int tf_transact(void* h, int write, uint32_t address, uint32_t* data, int64_t cycles,
                int* response) {
  return static_cast<Harness*>(h)->transact(write, address, data, cycles, response);
}
uint64_t tf_in_flight(void* h) { return static_cast<Harness*>(h)->in_flight(); }
int tf_irq(void* h) { return static_cast<Harness*>(h)->irq(); }
int64_t tf_cycle(void* h) { return static_cast<Harness*>(h)->cycle(); }
const char* tf_error(void* h) { return static_cast<Harness*>(h)->error(); }
void tf_counters(void* h, int port, tokenfabric::Counters* counters) {
  *counters = static_cast<Harness*>(h)->counters(port);
}
const char* tf_bus_error(void* h, uint64_t number) {
  const auto& errors = static_cast<Harness*>(h)->bus_errors();
  return number < errors.size() ? errors[number].c_str() : nullptr;
}
void tf_throttle(void* h, uint64_t seed, int stalls) {
  static_cast<Harness*>(h)->throttle(seed, stalls);
}
void tf_record(void* h, int on) { static_cast<Harness*>(h)->record(on); }
const void* tf_uses(void* h, uint64_t* count) {
  const auto& uses = static_cast<Harness*>(h)->uses();
  *count = uses.size();
  return uses.data();
}
const void* tf_probed(void* h, uint64_t* count) {
  const auto& probed = static_cast<Harness*>(h)->probed();
  *count = probed.size();
  return probed.data();
}
void tf_stick(void* h, int port, int stuck) { static_cast<Harness*>(h)->stick(port, stuck); }
void tf_fail_read(void* h, int64_t number) { static_cast<Harness*>(h)->fail_read(number); }
int tf_trace(void* h, const char* path) { return static_cast<Harness*>(h)->trace(path); }

}  // extern "C"
#pragma GCC visibility pop
