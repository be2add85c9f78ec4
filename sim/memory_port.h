// The AXI slaves on the design's memory ports: channels to read and to write between the pins and
// the DRAM model, with a check of the AXI rules and counters of what moves and waits.
//
// Each cycle `drive` sets the slave's pins, before the design sees them, from its own state;
// `sample` then takes what the design answers, before the clock edge.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "bus.h"
#include "verilated.h"

namespace tokenfabric {

constexpr int kSize = kBeatBytes == 16 ? 4 : kBeatBytes == 8 ? 3 : 2;  // arsize of a full beat
constexpr int kIncrementing = 1;
constexpr uint32_t kPage = 4096;

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

// What the channels of one port share.
struct Port {
  int index = 0;
  DramPort* dram = nullptr;
  Counters counters = {};
  bool stuck = false;  // never arready nor awready again
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

// An address on channel ar or aw: `before` is what was there in the last cycle, which must stay
// while it waits.
inline void check_address(Bus& bus, const Port& port, const char* channel, bool valid,
                          bool waiting, const AddressPayload& before, const AddressPayload& now) {
  if (waiting) {
    if (!valid)
      return bus.fail("m_axi_hp%d: %svalid dropped before %sready", port.index, channel, channel);
    if (!(before == now))
      return bus.fail("m_axi_hp%d: %saddr, len, size or burst changed before %sready", port.index,
                      channel, channel);
    return;
  }
  const uint32_t bytes = (now.length + 1u) * kBeatBytes;
  if (now.length >= kMaxBeats)
    bus.fail("m_axi_hp%d: %slen is %d, the ports take bursts of at most %d beats", port.index,
             channel, now.length, kMaxBeats);
  else if (now.size != kSize)
    bus.fail("m_axi_hp%d: %ssize is %d, not the full width's %d", port.index, channel, now.size,
             kSize);
  else if (now.burst != kIncrementing)
    bus.fail("m_axi_hp%d: %sburst is %d, not INCR", port.index, channel, now.burst);
  else if (now.address % kBeatBytes)
    bus.fail("m_axi_hp%d: %saddr 0x%08x is not aligned to %d bytes", port.index, channel,
             now.address, kBeatBytes);
  else if (now.address % kPage + bytes > kPage)
    bus.fail("m_axi_hp%d: a burst of %u bytes at %saddr 0x%08x crosses a 4 KB boundary", port.index,
             bytes, channel, now.address);
}

struct ReadPins {
  CData &arvalid, &arready, &arlen, &arsize, &arburst;
  IData& araddr;
  CData &rvalid, &rready, &rresp, &rlast;
  void* rdata;
};

class ReadChannels {
 public:
  ReadChannels(Bus& bus, Port& port, const ReadPins& pins) : bus_(bus), port_(port), pins_(pins) {}

  void drive() {
    pins_.arready = !port_.stuck && bus_.dram.can_read(*port_.dram) && !bus_.held();
    if (showing_) return;  // a beat stays until it is taken
    pins_.rvalid = 0;
    if (port_.dram->reads_admitted == port_.dram->reads_returned) return;
    if (!bus_.dram.beat_ready(*port_.dram, beat_, bus_.cycle) || bus_.held()) return;
    const ReadBurst& burst = port_.dram->reads[port_.dram->reads_returned % kRing];
    showing_ = true;
    pins_.rvalid = 1;
    pins_.rresp = burst.response;
    pins_.rlast = beat_ + 1 == burst.beats;
    std::memcpy(pins_.rdata, burst.data + beat_ * kBeatBytes, kBeatBytes);
  }

  void sample() {
    if (pins_.arvalid | ar_waiting_) sample_address();
    if (showing_) {
      if (pins_.rready) {
        const bool last = pins_.rlast;
        ++beat_;
        port_.counters.read_bytes += kBeatBytes;
        bus_.dram.beat_taken(*port_.dram, last, bus_.cycle);
        if (last) beat_ = 0;
        showing_ = false;
      } else {
        ++port_.counters.read_stalls;
      }
    } else if (port_.dram->reads_accepted != port_.dram->reads_returned) {
      ++port_.counters.read_waits;
    }
  }

 private:
  void sample_address() {
    const AddressPayload ar{pins_.araddr, pins_.arlen, pins_.arsize, pins_.arburst};
    check_address(bus_, port_, "ar", pins_.arvalid, ar_waiting_, ar_, ar);
    ar_waiting_ = pins_.arvalid && !pins_.arready;
    ar_ = ar;
    if (ar_waiting_) ++port_.counters.read_address_stalls;
    if (!pins_.arvalid || !pins_.arready || !bus_.error.empty()) return;
    const int beats = ar.length + 1;
    uint8_t response = bus_.check_window(port_.index, "read", ar.address, beats);
    if (bus_.read_fails()) response = kSlaveError;
    if (response != kOkay) ++port_.counters.bus_errors;
    bus_.dram.read(*port_.dram, ar.address, beats, response, bus_.cycle);
    ++port_.counters.read_bursts;
    port_.counters.max_reads = std::max(port_.counters.max_reads,
                                        port_.dram->reads_accepted - port_.dram->reads_returned);
  }

  Bus& bus_;
  Port& port_;
  const ReadPins pins_;
  bool ar_waiting_ = false;  // was valid without ready in the last cycle
  AddressPayload ar_;
  int beat_ = 0;  // of the oldest burst, on the bus or next to be
  bool showing_ = false;
};

struct WritePins {
  CData &awvalid, &awready, &awlen, &awsize, &awburst;
  IData& awaddr;
  CData &wvalid, &wready, &wlast;
  const void* wdata;
  const void* wstrb;
  CData &bvalid, &bready, &bresp;
};

class WriteChannels {
 public:
  WriteChannels(Bus& bus, Port& port, const WritePins& pins)
      : bus_(bus), port_(port), pins_(pins) {}

  void drive() {
    pins_.awready = !port_.stuck && bus_.dram.can_address_write(*port_.dram) && !bus_.held();
    pins_.wready = !port_.stuck && bus_.dram.can_write_beat(*port_.dram) && !bus_.held();
    if (answering_) return;
    pins_.bvalid = 0;
    if (!bus_.dram.response_due(*port_.dram, bus_.cycle) || bus_.held()) return;
    const WriteBurst& burst = port_.dram->writes[port_.dram->writes_returned % kRing];
    bus_.dram.apply(burst);
    answering_ = true;
    pins_.bvalid = 1;
    pins_.bresp = burst.response;
  }

  void sample() {
    if (pins_.awvalid | aw_waiting_) sample_address();
    if (pins_.wvalid | w_waiting_) sample_beat();
    if (answering_ && pins_.bready) {
      bus_.dram.write_returned(*port_.dram);
      answering_ = false;
    }
  }

 private:
  void sample_address() {
    const AddressPayload aw{pins_.awaddr, pins_.awlen, pins_.awsize, pins_.awburst};
    check_address(bus_, port_, "aw", pins_.awvalid, aw_waiting_, aw_, aw);
    aw_waiting_ = pins_.awvalid && !pins_.awready;
    aw_ = aw;
    if (aw_waiting_) ++port_.counters.write_address_stalls;
    if (!pins_.awvalid || !pins_.awready || !bus_.error.empty()) return;
    WriteBurst& burst = port_.dram->writes[port_.dram->write_addresses % kRing];
    burst.address = aw.address;
    burst.beats = static_cast<uint8_t>(aw.length + 1);
    burst.response = bus_.check_window(port_.index, "write", aw.address, burst.beats);
    burst.has_address = true;
    if (burst.response != kOkay) ++port_.counters.bus_errors;
    if (burst.has_data ? burst.received != burst.beats : burst.received >= burst.beats)
      bus_.fail("m_axi_hp%d: %d beats written before an address that announces %d", port_.index,
                burst.received, burst.beats);
    ++port_.dram->write_addresses;
    ++port_.counters.write_bursts;
    port_.counters.max_writes = std::max(port_.counters.max_writes,
                                         port_.dram->write_addresses - port_.dram->writes_returned);
    if (burst.has_data) bus_.dram.write_complete(*port_.dram, burst, bus_.cycle);
  }

  void sample_beat() {
    BeatPayload w;
    std::memcpy(w.data, pins_.wdata, kBeatBytes);
    std::memcpy(&w.strobe, pins_.wstrb, (kBeatBytes + 7) / 8);
    w.last = pins_.wlast;
    if (w_waiting_) {
      if (!pins_.wvalid) return bus_.fail("m_axi_hp%d: wvalid dropped before wready", port_.index);
      if (!(w == w_))
        return bus_.fail("m_axi_hp%d: wdata, wstrb or wlast changed before wready", port_.index);
    }
    w_waiting_ = !pins_.wready;
    w_ = w;
    if (w_waiting_) {
      ++port_.counters.write_stalls;
      return;
    }
    // Data may come before its address: AXI allows it and the queue has a place for it.
    WriteBurst& burst = port_.dram->writes[port_.dram->write_bodies % kRing];
    const int beat = burst.received;
    const int beats = burst.has_address ? burst.beats : kMaxBeats;
    if (w.last ? burst.has_address && beat + 1 < beats : beat + 1 >= beats)
      return bus_.fail("m_axi_hp%d: wlast is %d at beat %d of a burst of %d", port_.index, w.last,
                       beat, beats);
    std::memcpy(burst.data + beat * kBeatBytes, w.data, kBeatBytes);
    burst.strobes[beat] = static_cast<uint16_t>(w.strobe);
    ++burst.received;
    port_.counters.write_bytes += kBeatBytes;
    if (!w.last) return;
    burst.has_data = true;
    ++port_.dram->write_bodies;
    if (burst.has_address) bus_.dram.write_complete(*port_.dram, burst, bus_.cycle);
  }

  Bus& bus_;
  Port& port_;
  const WritePins pins_;
  bool aw_waiting_ = false;
  AddressPayload aw_;
  bool w_waiting_ = false;
  BeatPayload w_;
  bool answering_ = false;
};

}  // namespace tokenfabric
