// What goes in and out of the DRAM model of dram.h: its parameters, the bursts of a port, and the
// record of what kept the data bus.

#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace tokenfabric {

using Time = int64_t;  // fabric cycles << kFraction
constexpr int kFraction = 16;
constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

constexpr int kMaxPorts = 8;
constexpr int kMaxBeats = 16;
constexpr int kMaxBurstBytes = kMaxBeats * 16;
constexpr int kRing = 16;      // bursts in flight per port and direction
constexpr int kMaxWindow = 64;  // column accesses the controller looks at, per direction
constexpr int kMaxBanks = 64;

enum Response : uint8_t { kOkay = 0, kSlaveError = 2, kDecodeError = 3 };

// Filled in by sim/dram.py, field by field in this order.
struct DramParameters {
  int64_t burst_bytes;     // one column access
  int64_t banks;           // power of two
  int64_t row_bytes;       // open row of one bank, power of two
  Time read_access;        // column access on the data bus
  Time write_access;
  Time activate;           // tRCD
  Time precharge;          // tRP
  Time row_active;         // tRAS
  Time activate_spacing;   // tRRD
  Time four_activates;     // tFAW
  Time write_recovery;     // end of write data to precharge
  Time write_to_read;      // bus idle when it turns round
  Time read_to_write;
  Time refresh_interval;   // tREFI; 0 = none
  Time refresh;            // tRFC
  int64_t request_cycles;  // from the port to the controller
  int64_t return_cycles;   // and back
  int64_t read_window;     // column accesses the controller chooses from
  int64_t write_window;
  int64_t turn_accesses;   // in one direction before the other gets its turn
  int64_t max_reads;       // per port: accepted and not yet returned
  int64_t max_writes;
  int64_t read_fifo_beats;  // per port: room that data needs before it is fetched
  Time controller_byte;     // of read data on a port of the controller; 0 = no limit
  int64_t controller_port[kMaxPorts];  // the controller's port that each AXI port leads to
  int64_t detour_cycles[kMaxPorts];    // of each AXI port, besides request_cycles
};

struct ReadBurst {
  uint32_t address;
  uint8_t beats;
  uint8_t response;
  bool served;
  int64_t arrival;  // cycle at which the controller sees it
  Time first;       // when the first beat is at the port
  Time pace;        // between beats
  alignas(16) uint8_t data[kMaxBurstBytes];
};

struct WriteBurst {
  uint32_t address;
  uint8_t beats;
  uint8_t response;
  bool has_address;
  bool has_data;  // the last beat has come
  bool served;
  uint8_t received;  // beats so far
  int64_t arrival;
  int64_t answer;  // cycle of the response
  uint16_t strobes[kMaxBeats];
  alignas(16) uint8_t data[kMaxBurstBytes];
};

enum Use : uint8_t { kRead = 0, kWrite = 1, kRefresh = 2, kTurn = 3 };

// What kept the data bus, for those who ask (read by sim/verilator.py in this order).
struct BusUse {
  Time start, end;      // on the data bus
  int64_t accepted;     // cycle: at the port, the burst is whole
  int64_t arrival;      // cycle: the controller sees it
  int64_t enter;        // cycle: the controller chooses from it
  int64_t done;         // cycle: its last beat may be shown, its response is due
  uint32_t address;
  uint16_t bytes;
  uint8_t port;
  uint8_t use;
};

// Counters only grow; a burst lives in slot `counter % kRing`.
struct DramPort {
  ReadBurst reads[kRing];
  uint64_t reads_accepted = 0, reads_admitted = 0, reads_returned = 0;
  int64_t fifo_beats = 0;  // fetched or being fetched, and not yet taken
  WriteBurst writes[kRing] = {};
  uint64_t write_addresses = 0, write_bodies = 0;  // AW and W may come in either order
  uint64_t writes_admitted = 0, writes_returned = 0;

  uint64_t writes_complete() const { return std::min(write_addresses, write_bodies); }
};

}  // namespace tokenfabric
