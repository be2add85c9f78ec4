// Runs the Verilated `top`: AXI slaves on its memory ports, an AXI4-Lite master on its registers,
// the DRAM model behind them, and a check of the AXI rules on every channel. It moves bytes and
// knows nothing of what they mean. sim/verilator.py compiles it together with the design and
// with ports.h, which names the ports:
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

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "Vtop.h"
#include "Vtop___024root.h"
#include "dram.h"
#include "ports.h"
#include "verilated.h"
#if VM_TRACE
#include "verilated_vcd_c.h"
#endif

namespace tokenfabric {
namespace {

constexpr int kPorts = TOKENFABRIC_PORT_COUNT;
constexpr int kBeatBytes = TOKENFABRIC_PORT_BYTES;
constexpr int kSize = kBeatBytes == 16 ? 4 : kBeatBytes == 8 ? 3 : 2;  // arsize of a full beat
constexpr int kIncrementing = 1;
constexpr uint32_t kPage = 4096;
constexpr size_t kMaxBusErrors = 16;  // described; all are counted
constexpr int kResetCycles = 8;

// Read by sim/verilator.py in this order.
struct Counters {
  uint64_t read_bytes, write_bytes;
  uint64_t read_bursts, write_bursts;
  uint64_t read_address_stalls;  // cycles: arvalid, not arready
  uint64_t read_stalls;          // rvalid, not rready: the design was not ready
  uint64_t read_waits;           // reads in flight and no beat there: memory was not ready
  uint64_t write_address_stalls;
  uint64_t write_stalls;
  uint64_t max_reads;  // in flight
  uint64_t max_writes;
  uint64_t bus_errors;  // responses that were not okay
};

constexpr int kProbes = TOKENFABRIC_PROBE_COUNT;

// A cycle and the values of the probes from then on, as sim/verilator.py reads them.
struct Probed {
  int64_t words[1 + kProbes];
};

struct ReadPins {
  CData &arvalid, &arready, &arlen, &arsize, &arburst;
  IData& araddr;
  CData &rvalid, &rready, &rresp, &rlast;
  void* rdata;
};

struct WritePins {
  CData &awvalid, &awready, &awlen, &awsize, &awburst;
  IData& awaddr;
  CData &wvalid, &wready, &wlast;
  const void* wdata;
  const void* wstrb;
  CData &bvalid, &bready, &bresp;
};

struct AddressPayload {
  uint32_t address = 0;
  uint8_t length = 0, size = 0, burst = 0;
  bool operator==(const AddressPayload& o) const {
    return address == o.address && length == o.length && size == o.size && burst == o.burst;
  }
};

struct BeatPayload {
  uint8_t data[kBeatBytes] = {};
  uint32_t strobe = 0;
  bool last = false;
  bool operator==(const BeatPayload& o) const {
    return strobe == o.strobe && last == o.last && !std::memcmp(data, o.data, kBeatBytes);
  }
};

struct Port {
  int index = 0;
  DramPort* dram = nullptr;
  Counters counters = {};
  bool stuck = false;  // never arready nor awready again

  bool ar_waiting = false;  // was valid without ready in the last cycle
  AddressPayload ar;
  int beat = 0;  // of the oldest burst, on the bus or next to be
  bool showing = false;

  bool aw_waiting = false;
  AddressPayload aw;
  bool w_waiting = false;
  BeatPayload w;
  bool answering = false;
};

// The one AXI4-Lite transaction under way, if any.
struct Lite {
  bool write = false, read = false;
  uint32_t address = 0, data = 0;
  bool showing_address = false, showing_data = false;
  bool address_done = false, data_done = false, done = false;
  bool answer_waiting = false;
  uint64_t answer = 0;  // data and response
};

class Harness {
 public:
  Harness(const DramParameters& dram, uint64_t base, uint64_t size)
      : memory_(static_cast<uint8_t*>(std::calloc(size, 1)), &std::free),
        dram_(dram, memory_.get(), base, size, kPorts, kBeatBytes),
        context_(),
        top_(&context_) {
    if (memory_ == nullptr) throw std::bad_alloc();
#if VM_TRACE
    context_.traceEverOn(true);
#endif
    for (int i = 0; i < kPorts; ++i) {
      ports_[i].index = i;
      ports_[i].dram = &dram_.port(i);
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

  void reset() {
    dram_.clear(cycle_);
    for (Port& port : ports_) {
      port.ar_waiting = port.aw_waiting = port.w_waiting = false;
      port.showing = port.answering = false;
      port.beat = 0;
    }
    lite_ = Lite();
    error_.clear();
    in_reset_ = true;
    top_.rst = 1;
    for (int i = 0; i < kResetCycles; ++i) step<true>();
    top_.rst = 0;
    in_reset_ = false;
  }

  // Steps until `irq` (if asked for), a broken rule, or `cycles`; returns the cycles stepped.
  int64_t run(int64_t cycles, bool until_irq) {
    const int64_t start = cycle_;
    while (cycle_ - start < cycles && error_.empty()) {
      if (until_irq && top_.irq) break;
      step<false>();
    }
    return cycle_ - start;
  }

  // 0 = done, 1 = no answer within `cycles`, 2 = a rule was broken.
  int transact(bool write, uint32_t address, uint32_t* data, int64_t cycles, int* response) {
    lite_ = Lite();
    (write ? lite_.write : lite_.read) = true;
    lite_.address = address;
    lite_.data = *data;
    for (const int64_t start = cycle_; !lite_.done;) {
      if (!error_.empty()) return 2;
      if (cycle_ - start >= cycles) return 1;
      step<true>();
    }
    if (!write) *data = static_cast<uint32_t>(lite_.answer);
    *response = static_cast<int>(write ? lite_.answer : lite_.answer >> 32);
    lite_ = Lite();
    step<true>();  // takes the readys down
    return error_.empty() ? 0 : 2;
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

  void throttle(uint64_t seed, int stalls_of_256) {
    random_ = seed * 0x9E3779B97F4A7C15u + 1;
    stalls_ = stalls_of_256;
  }

  uint8_t* memory() { return memory_.get(); }
  int64_t cycle() const { return cycle_; }
  bool irq() const { return top_.irq; }
  const char* error() const { return error_.c_str(); }
  const Counters& counters(int port) const { return ports_[port].counters; }
  const std::vector<std::string>& bus_errors() const { return bus_errors_; }
  const std::vector<BusUse>& uses() const { return uses_; }
  const std::vector<Probed>& probed() const { return probed_; }

  // Begins a recording of the bus and the probes, or ends it and keeps it.
  void record(bool on) {
    if (on) {
      uses_.clear();
      probed_.clear();
    }
    recording_ = on;
    dram_.record(on ? &uses_ : nullptr);
  }
  void stick(int port, bool stuck) { ports_[port].stuck = stuck; }
  void fail_read(int64_t number) { fail_read_ = number > 0 ? reads_ + number : 0; }

 private:
  template <bool kLite>
  void step() {
    dram_.tick(cycle_);
#define TOKENFABRIC_DRIVE(i) drive_read(ports_[i], read_pins_[i]);
    TOKENFABRIC_PORTS(TOKENFABRIC_DRIVE)
#undef TOKENFABRIC_DRIVE
    drive_write(ports_[0], write_pins_);
    if (kLite) drive_lite();
    top_.clk = 0;
    top_.eval();
#if VM_TRACE
    if (trace_) trace_->dump(static_cast<uint64_t>(2 * cycle_));
#endif
    if (!in_reset_) {
#define TOKENFABRIC_SAMPLE(i) sample_read(ports_[i], read_pins_[i]);
      TOKENFABRIC_PORTS(TOKENFABRIC_SAMPLE)
#undef TOKENFABRIC_SAMPLE
      sample_write(ports_[0], write_pins_);
      if (kLite) {
        sample_lite();
      } else if (top_.s_axi_ctrl_bvalid | top_.s_axi_ctrl_rvalid) {
        fail("s_axi_ctrl: response without a request");
      }
    }
    if (recording_) probe();
    top_.clk = 1;
    top_.eval();
#if VM_TRACE
    if (trace_) trace_->dump(static_cast<uint64_t>(2 * cycle_ + 1));
#endif
    ++cycle_;
  }

  void probe() {
#define TOKENFABRIC_PROBE(name) , top_.rootp->name
    const Probed now = {{cycle_ TOKENFABRIC_PROBES(TOKENFABRIC_PROBE)}};
#undef TOKENFABRIC_PROBE
    if (probed_.empty() ||
        std::memcmp(now.words + 1, probed_.back().words + 1, kProbes * sizeof now.words[0]))
      probed_.push_back(now);
  }

  // True in a share of the cycles while throttled: the channel is held back.
  bool held() {
    if (stalls_ == 0) return false;
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return static_cast<int>(random_ >> 32 & 255) < stalls_;
  }

  void drive_read(Port& port, const ReadPins& pins) {
    pins.arready = !port.stuck && dram_.can_read(*port.dram) && !held();
    if (port.showing) return;  // a beat stays until it is taken
    pins.rvalid = 0;
    if (port.dram->reads_admitted == port.dram->reads_returned) return;
    if (!dram_.beat_ready(*port.dram, port.beat, cycle_) || held()) return;
    const ReadBurst& burst = port.dram->reads[port.dram->reads_returned % kRing];
    port.showing = true;
    pins.rvalid = 1;
    pins.rresp = burst.response;
    pins.rlast = port.beat + 1 == burst.beats;
    std::memcpy(pins.rdata, burst.data + port.beat * kBeatBytes, kBeatBytes);
  }

  void sample_read(Port& port, const ReadPins& pins) {
    if (pins.arvalid | port.ar_waiting) sample_read_address(port, pins);
    if (port.showing) {
      if (pins.rready) {
        const bool last = pins.rlast;
        ++port.beat;
        port.counters.read_bytes += kBeatBytes;
        dram_.beat_taken(*port.dram, last, cycle_);
        if (last) port.beat = 0;
        port.showing = false;
      } else {
        ++port.counters.read_stalls;
      }
    } else if (port.dram->reads_accepted != port.dram->reads_returned) {
      ++port.counters.read_waits;
    }
  }

  void sample_read_address(Port& port, const ReadPins& pins) {
    const AddressPayload ar{pins.araddr, pins.arlen, pins.arsize, pins.arburst};
    check_address(port, "ar", pins.arvalid, port.ar_waiting, port.ar, ar);
    port.ar_waiting = pins.arvalid && !pins.arready;
    port.ar = ar;
    if (port.ar_waiting) ++port.counters.read_address_stalls;
    if (!pins.arvalid || !pins.arready || !error_.empty()) return;
    const int beats = ar.length + 1;
    uint8_t response = check_window(port, "read", ar.address, beats);
    if (++reads_ == fail_read_) response = kSlaveError;
    if (response != kOkay) ++port.counters.bus_errors;
    dram_.read(*port.dram, ar.address, beats, response, cycle_);
    ++port.counters.read_bursts;
    port.counters.max_reads = std::max(port.counters.max_reads,
                                       port.dram->reads_accepted - port.dram->reads_returned);
  }

  void drive_write(Port& port, const WritePins& pins) {
    pins.awready = !port.stuck && dram_.can_address_write(*port.dram) && !held();
    pins.wready = !port.stuck && dram_.can_write_beat(*port.dram) && !held();
    if (port.answering) return;
    pins.bvalid = 0;
    if (!dram_.response_due(*port.dram, cycle_) || held()) return;
    const WriteBurst& burst = port.dram->writes[port.dram->writes_returned % kRing];
    dram_.apply(burst);
    port.answering = true;
    pins.bvalid = 1;
    pins.bresp = burst.response;
  }

  void sample_write(Port& port, const WritePins& pins) {
    if (pins.awvalid | port.aw_waiting) sample_write_address(port, pins);
    if (pins.wvalid | port.w_waiting) sample_write_beat(port, pins);
    if (port.answering && pins.bready) {
      dram_.write_returned(*port.dram);
      port.answering = false;
    }
  }

  void sample_write_address(Port& port, const WritePins& pins) {
    const AddressPayload aw{pins.awaddr, pins.awlen, pins.awsize, pins.awburst};
    check_address(port, "aw", pins.awvalid, port.aw_waiting, port.aw, aw);
    port.aw_waiting = pins.awvalid && !pins.awready;
    port.aw = aw;
    if (port.aw_waiting) ++port.counters.write_address_stalls;
    if (!pins.awvalid || !pins.awready || !error_.empty()) return;
    WriteBurst& burst = port.dram->writes[port.dram->write_addresses % kRing];
    burst.address = aw.address;
    burst.beats = static_cast<uint8_t>(aw.length + 1);
    burst.response = check_window(port, "write", aw.address, burst.beats);
    burst.has_address = true;
    if (burst.response != kOkay) ++port.counters.bus_errors;
    if (burst.has_data ? burst.received != burst.beats : burst.received >= burst.beats)
      fail("m_axi_hp%d: %d beats written before an address that announces %d", port.index,
           burst.received, burst.beats);
    ++port.dram->write_addresses;
    ++port.counters.write_bursts;
    port.counters.max_writes = std::max(port.counters.max_writes,
                                        port.dram->write_addresses - port.dram->writes_returned);
    if (burst.has_data) dram_.write_complete(burst, cycle_);
  }

  void sample_write_beat(Port& port, const WritePins& pins) {
    BeatPayload w;
    std::memcpy(w.data, pins.wdata, kBeatBytes);
    std::memcpy(&w.strobe, pins.wstrb, (kBeatBytes + 7) / 8);
    w.last = pins.wlast;
    if (port.w_waiting) {
      if (!pins.wvalid) return fail("m_axi_hp%d: wvalid dropped before wready", port.index);
      if (!(w == port.w))
        return fail("m_axi_hp%d: wdata, wstrb or wlast changed before wready", port.index);
    }
    port.w_waiting = !pins.wready;
    port.w = w;
    if (port.w_waiting) {
      ++port.counters.write_stalls;
      return;
    }
    // Data may come before its address: AXI allows it and the queue has a place for it.
    WriteBurst& burst = port.dram->writes[port.dram->write_bodies % kRing];
    const int beat = burst.received;
    const int beats = burst.has_address ? burst.beats : kMaxBeats;
    if (w.last ? burst.has_address && beat + 1 < beats : beat + 1 >= beats)
      return fail("m_axi_hp%d: wlast is %d at beat %d of a burst of %d", port.index, w.last, beat,
                  beats);
    std::memcpy(burst.data + beat * kBeatBytes, w.data, kBeatBytes);
    burst.strobes[beat] = static_cast<uint16_t>(w.strobe);
    ++burst.received;
    port.counters.write_bytes += kBeatBytes;
    if (!w.last) return;
    burst.has_data = true;
    ++port.dram->write_bodies;
    if (burst.has_address) dram_.write_complete(burst, cycle_);
  }

  void check_address(const Port& port, const char* channel, bool valid, bool waiting,
                     const AddressPayload& before, const AddressPayload& now) {
    if (waiting) {
      if (!valid)
        return fail("m_axi_hp%d: %svalid dropped before %sready", port.index, channel, channel);
      if (!(before == now))
        return fail("m_axi_hp%d: %saddr, len, size or burst changed before %sready", port.index,
                    channel, channel);
      return;
    }
    const uint32_t bytes = (now.length + 1u) * kBeatBytes;
    if (now.length >= kMaxBeats)
      fail("m_axi_hp%d: %slen is %d, the ports take bursts of at most %d beats", port.index,
           channel, now.length, kMaxBeats);
    else if (now.size != kSize)
      fail("m_axi_hp%d: %ssize is %d, not the full width's %d", port.index, channel, now.size,
           kSize);
    else if (now.burst != kIncrementing)
      fail("m_axi_hp%d: %sburst is %d, not INCR", port.index, channel, now.burst);
    else if (now.address % kBeatBytes)
      fail("m_axi_hp%d: %saddr 0x%08x is not aligned to %d bytes", port.index, channel,
           now.address, kBeatBytes);
    else if (now.address % kPage + bytes > kPage)
      fail("m_axi_hp%d: a burst of %u bytes at %saddr 0x%08x crosses a 4 KB boundary", port.index,
           bytes, channel, now.address);
  }

  uint8_t check_window(const Port& port, const char* what, uint32_t address, int beats) {
    if (dram_.inside(address, static_cast<uint64_t>(beats) * kBeatBytes)) return kOkay;
    if (bus_errors_.size() < kMaxBusErrors) {
      char text[128];
      std::snprintf(text, sizeof text, "cycle %lld: m_axi_hp%d: %s of %d bytes at 0x%08x",
                    static_cast<long long>(cycle_), port.index, what, beats * kBeatBytes, address);
      bus_errors_.push_back(text);
    }
    return kDecodeError;
  }

  void drive_lite() {
    Lite& l = lite_;
    l.showing_address |= (l.read || l.write) && !l.address_done && !held();
    l.showing_data |= l.write && !l.data_done && !held();
    top_.s_axi_ctrl_awvalid = l.write && l.showing_address;
    top_.s_axi_ctrl_arvalid = l.read && l.showing_address;
    top_.s_axi_ctrl_wvalid = l.showing_data;
    top_.s_axi_ctrl_awaddr = top_.s_axi_ctrl_araddr = static_cast<SData>(l.address);
    top_.s_axi_ctrl_wdata = l.data;
    top_.s_axi_ctrl_wstrb = 15;
    top_.s_axi_ctrl_bready = l.write && !l.done && !held();
    top_.s_axi_ctrl_rready = l.read && !l.done && !held();
  }

  void sample_lite() {
    Lite& l = lite_;
    const bool address = l.write ? top_.s_axi_ctrl_awready : top_.s_axi_ctrl_arready;
    if (l.showing_address && address) l.address_done = true, l.showing_address = false;
    if (l.showing_data && top_.s_axi_ctrl_wready) l.data_done = true, l.showing_data = false;

    const bool b = top_.s_axi_ctrl_bvalid, r = top_.s_axi_ctrl_rvalid;
    const bool b_expected = l.write && l.address_done && l.data_done && !l.done;
    const bool r_expected = l.read && l.address_done && !l.done;
    if ((b && !b_expected) || (r && !r_expected))
      return fail("s_axi_ctrl: response without a request");
    const uint64_t payload = b ? top_.s_axi_ctrl_bresp
                               : top_.s_axi_ctrl_rdata | uint64_t{top_.s_axi_ctrl_rresp} << 32;
    if (l.answer_waiting) {
      if (!b && !r)
        return fail("s_axi_ctrl: %s dropped before ready", l.write ? "bvalid" : "rvalid");
      if (payload != l.answer)
        return fail("s_axi_ctrl: %s changed before ready", l.write ? "bresp" : "rdata or rresp");
    }
    l.answer = payload;
    l.done |= (b && top_.s_axi_ctrl_bready) || (r && top_.s_axi_ctrl_rready);
    l.answer_waiting = (b || r) && !l.done;
  }

  // Only the first broken rule is kept: what follows one is often its consequence.
  void fail(const char* format, ...) __attribute__((format(printf, 2, 3))) {
    if (!error_.empty()) return;
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    error_ = "cycle " + std::to_string(cycle_) + ": " + text;
  }

  const std::unique_ptr<uint8_t, decltype(&std::free)> memory_;  // untouched pages cost nothing
  Dram dram_;
  VerilatedContext context_;
  Vtop top_;
#if VM_TRACE
  std::unique_ptr<VerilatedVcdC> trace_;
#endif
  Port ports_[kPorts];
#define TOKENFABRIC_READ_PINS(i)                                                                 \
  {top_.m_axi_hp##i##_arvalid, top_.m_axi_hp##i##_arready, top_.m_axi_hp##i##_arlen,             \
   top_.m_axi_hp##i##_arsize,  top_.m_axi_hp##i##_arburst, top_.m_axi_hp##i##_araddr,            \
   top_.m_axi_hp##i##_rvalid,  top_.m_axi_hp##i##_rready,  top_.m_axi_hp##i##_rresp,             \
   top_.m_axi_hp##i##_rlast,   &top_.m_axi_hp##i##_rdata},
  const ReadPins read_pins_[kPorts] = {TOKENFABRIC_PORTS(TOKENFABRIC_READ_PINS)};
#undef TOKENFABRIC_READ_PINS
  const WritePins write_pins_ = {
      top_.m_axi_hp0_awvalid, top_.m_axi_hp0_awready, top_.m_axi_hp0_awlen,
      top_.m_axi_hp0_awsize,  top_.m_axi_hp0_awburst, top_.m_axi_hp0_awaddr,
      top_.m_axi_hp0_wvalid,  top_.m_axi_hp0_wready,  top_.m_axi_hp0_wlast,
      &top_.m_axi_hp0_wdata,  &top_.m_axi_hp0_wstrb,  top_.m_axi_hp0_bvalid,
      top_.m_axi_hp0_bready,  top_.m_axi_hp0_bresp};
  Lite lite_;
  int64_t cycle_ = 0;
  bool in_reset_ = false;
  int64_t reads_ = 0;
  int64_t fail_read_ = 0;
  int stalls_ = 0;  // of 256 cycles
  uint64_t random_ = 1;
  std::string error_;
  std::vector<std::string> bus_errors_;
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
