// Masters that move data as fast as their ports allow, against the DRAM model alone: what share
// of the peak is left is a property of the model, and tests/test_dram.py compares it with what
// the vendor has measured.

#include <cstdint>
#include <vector>

#include "dram.h"

namespace {

using namespace tokenfabric;

constexpr uint64_t kMemory = 64u << 20;

struct Master {
  uint64_t next_read = 0, next_write = 0;  // bursts
  int beat = 0;
  bool reads = false, writes = false;
};

uint64_t next_random(uint64_t* state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state >> 16;
}

}  // namespace

// Read and written bytes in the last `cycles` of 2 * `cycles` go to bytes[0] and bytes[1].
// pattern: 0 = each port walks through its own region, 1 = random bursts, 2 = one walk, its
// bursts dealt to the ports in turn. Port i's reads begin at 2 * i * `stride`,
// its writes at (2 * i + 1) * `stride` in the upper half of the memory.
extern "C" void tf_traffic(const tokenfabric::DramParameters* parameters, int ports, int port_bytes,
                           int beats, int reading, int writing, int pattern, uint64_t stride,
                           int64_t cycles, uint64_t seed, uint64_t* bytes) {
  std::vector<uint8_t> memory(kMemory);
  Dram dram(*parameters, memory.data(), 0, kMemory, ports, port_bytes);
  std::vector<Master> masters(ports);
  const uint64_t burst_bytes = static_cast<uint64_t>(beats) * port_bytes;
  uint64_t random = seed * 2654435761u + 1;
  const auto address = [&](int port, uint64_t number, bool write) -> uint32_t {
    uint64_t at;
    if (pattern == 1)
      at = next_random(&random) % (kMemory / 2 / burst_bytes) * burst_bytes;
    else if (pattern == 0)
      at = (2 * port + write) * stride + number * burst_bytes;
    else
      at = (number * ports + port) * burst_bytes;
    return static_cast<uint32_t>(at % (kMemory / 2) + (write ? kMemory / 2 : 0));
  };
  for (int64_t cycle = 0; cycle < 2 * cycles; ++cycle) {
    if (cycle == cycles) bytes[0] = bytes[1] = 0;
    dram.tick(cycle);
    for (int i = 0; i < ports; ++i) {
      Master& master = masters[i];
      DramPort& port = dram.port(i);
      if (reading && dram.can_read(port))
        dram.read(port, address(i, master.next_read++, false), beats, kOkay, cycle);
      if (port.reads_admitted != port.reads_returned && dram.beat_ready(port, master.beat, cycle)) {
        const bool last = ++master.beat == beats;
        if (last) master.beat = 0;
        dram.beat_taken(port, last, cycle);
        bytes[0] += port_bytes;
      }
      if (dram.response_due(port, cycle)) {
        dram.write_returned(port);
        bytes[1] += burst_bytes;
      }
      if (!writing || !dram.can_write_beat(port)) continue;
      WriteBurst& burst = port.writes[port.write_bodies % kRing];
      if (++burst.received < beats) continue;
      burst.address = address(i, master.next_write++, true);
      burst.beats = static_cast<uint8_t>(beats);
      burst.response = kOkay;
      ++port.write_addresses;
      ++port.write_bodies;
      dram.write_complete(port, burst, cycle);
    }
  }
}
