// A DRAM channel shared by several AXI ports: what the chip waits for, to the burst.
//
// Time is counted in fabric cycles with 16 fractional bits, in integers, so a run is the same on
// every machine. Commands are not modelled one by one: a burst is served when its row is open and
// the data bus is free, and rows of other banks are opened meanwhile. All times are those of the
// data on the bus: a command stands where the data of a column command given then would start.
// The parameters (sim/dram.py) are those of a data sheet wherever a data sheet has them.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "dram_bursts.h"

namespace tokenfabric {

class Dram {
 public:
  Dram(const DramParameters& parameters, uint8_t* memory, uint64_t base, uint64_t size, int ports,
       int beat_bytes)
      : p_(parameters),
        memory_(memory),
        base_(base),
        size_(size),
        port_count_(ports),
        beat_bytes_(beat_bytes),
        ports_(new DramPort[kMaxPorts]) {
    std::fill(returning_, returning_ + kMaxPorts, 0);
    for (Time& act : activates_) act = -p_.four_activates;
    next_refresh_ = p_.refresh_interval;
  }

  DramPort& port(int index) { return ports_[index]; }

  // Every use of the data bus goes there from now on; null ends it.
  void record(std::vector<BusUse>* uses) { uses_ = uses; }

  bool inside(uint64_t address, uint64_t bytes) const {
    const uint64_t at = address - base_;  // huge if below
    return at <= size_ && bytes <= size_ - at;
  }

  bool can_read(const DramPort& port) const {
    return port.reads_accepted - port.reads_returned < static_cast<uint64_t>(p_.max_reads);
  }

  // The address and the beats come first or the data does: each has its own place in the queue.
  bool can_address_write(const DramPort& port) const {
    return port.write_addresses - port.writes_returned < static_cast<uint64_t>(p_.max_writes);
  }
  bool can_write_beat(const DramPort& port) const {
    return port.write_bodies - port.writes_returned < static_cast<uint64_t>(p_.max_writes);
  }

  // Accepts a burst of `beats` whole beats that lies in one 4 KB page. One with another response
  // than kOkay never reaches memory and returns zeros.
  void read(DramPort& port, uint32_t address, int beats, uint8_t response, int64_t cycle) {
    ReadBurst& burst = port.reads[port.reads_accepted++ % kRing];
    burst.address = address;
    burst.beats = static_cast<uint8_t>(beats);
    burst.response = response;
    burst.served = false;
    burst.arrival = cycle + way_of(port);
    wake_ = std::min(wake_, burst.arrival);
  }

  // The oldest burst's next beat may be shown in this cycle.
  bool beat_ready(const DramPort& port, int beat, int64_t cycle) const {
    const ReadBurst& burst = port.reads[port.reads_returned % kRing];
    return burst.served && burst.first + beat * burst.pace <= (cycle << kFraction);
  }

  void beat_taken(DramPort& port, bool last, int64_t cycle) {
    --port.fifo_beats;
    if (last) ++port.reads_returned;
    if (waiting_for_room_ && port.reads_admitted != port.reads_accepted &&
        has_room(port, port.reads[port.reads_admitted % kRing]))
      wake_ = cycle;
  }

  // Called when a burst has both its address and its last beat.
  void write_complete(const DramPort& port, WriteBurst& burst, int64_t cycle) {
    burst.served = false;
    burst.arrival = cycle + way_of(port);
    wake_ = std::min(wake_, burst.arrival);
  }

  // The response of the port's oldest write is due. Only now does memory change: a read that
  // does not wait for the response sees old data here as it may on the board.
  bool response_due(const DramPort& port, int64_t cycle) const {
    if (port.writes_admitted == port.writes_returned) return false;
    const WriteBurst& burst = port.writes[port.writes_returned % kRing];
    return burst.served && burst.answer <= cycle;
  }

  void apply(const WriteBurst& burst) {
    if (burst.response != kOkay) return;
    uint8_t* to = memory_ + (burst.address - base_);
    const uint32_t all = (1u << beat_bytes_) - 1;
    for (int beat = 0; beat < burst.beats; ++beat) {
      const uint8_t* from = burst.data + beat * beat_bytes_;
      if (burst.strobes[beat] == all) {
        std::memcpy(to + beat * beat_bytes_, from, beat_bytes_);
        continue;
      }
      for (int i = 0; i < beat_bytes_; ++i)
        if (burst.strobes[beat] >> i & 1) to[beat * beat_bytes_ + i] = from[i];
    }
  }

  void write_returned(DramPort& port) {
    WriteBurst& burst = port.writes[port.writes_returned++ % kRing];
    burst.has_address = burst.has_data = false;  // free for the next
    burst.received = 0;
  }

  void tick(int64_t cycle) {
    if (cycle >= wake_) advance(cycle);
  }

 private:
  struct Bank {
    int64_t row = -1;          // open, or being opened
    Time ready = 0;            // from here on its columns can be accessed
    Time precharge_from = 0;
    int users = 0;             // bursts in the window that want this row
  };

  struct Entry {
    Time enter;
    int64_t row;
    int bank;
    uint8_t port;
    uint8_t slot;
    bool write;
    bool claimed;  // counted in its bank's users; else it waits for another row's users
    int64_t accesses;
    Time extra;
  };

  static int64_t ceil(Time time) { return (time + (1 << kFraction) - 1) >> kFraction; }

  void advance(int64_t cycle) {
    const Time now = cycle << kFraction;
    Time next;
    do {
      admit(cycle);
      next = kNever;
    } while (bus_free_ <= now && serve(now, &next));
    if (entries_ > 0) next = std::min(next, std::max(bus_free_, now + 1));
    wake_ = next == kNever ? kNever : std::max(ceil(next), cycle + 1);
    for (int i = 0; i < port_count_; ++i) {
      const DramPort& port = ports_[i];
      if (port.reads_admitted != port.reads_accepted) {
        const int64_t arrival = port.reads[port.reads_admitted % kRing].arrival;
        if (arrival > cycle) wake_ = std::min(wake_, arrival);
      }
      if (port.writes_admitted != port.writes_complete()) {
        const int64_t arrival = port.writes[port.writes_admitted % kRing].arrival;
        if (arrival > cycle) wake_ = std::min(wake_, arrival);
      }
    }
  }

  bool has_room(const DramPort& port, const ReadBurst& burst) const {
    return port.fifo_beats + burst.beats <= p_.read_fifo_beats;
  }

  // Moves arrived bursts into the window, one per port in turn.
  void admit(int64_t cycle) {
    waiting_for_room_ = false;
    for (int idle = 0; idle < port_count_; turn_ = turn_ + 1 == port_count_ ? 0 : turn_ + 1) {
      const bool read = admit_read(turn_, cycle);
      const bool write = admit_write(turn_, cycle);
      idle = read || write ? 0 : idle + 1;
    }
  }

  bool admit_read(int index, int64_t cycle) {
    DramPort& port = ports_[index];
    if (port.reads_admitted == port.reads_accepted || count_[0] >= p_.read_window) return false;
    const int slot = port.reads_admitted % kRing;
    ReadBurst& burst = port.reads[slot];
    if (burst.arrival > cycle) return false;
    if (!has_room(port, burst)) {
      waiting_for_room_ = true;
      return false;
    }
    ++port.reads_admitted;
    port.fifo_beats += burst.beats;
    if (burst.response != kOkay) {
      std::memset(burst.data, 0, sizeof burst.data);
      finish_read(burst, cycle << kFraction, 0);
    } else {
      enter(index, slot, false, burst.address, burst.beats, cycle);
    }
    return true;
  }

  bool admit_write(int index, int64_t cycle) {
    DramPort& port = ports_[index];
    if (port.writes_admitted == port.writes_complete() || count_[1] >= p_.write_window)
      return false;
    const int slot = port.writes_admitted % kRing;
    WriteBurst& burst = port.writes[slot];
    if (burst.arrival > cycle) return false;
    ++port.writes_admitted;
    if (burst.response != kOkay) {
      finish_write(burst, cycle << kFraction);
    } else {
      enter(index, slot, true, burst.address, burst.beats, cycle);
    }
    return true;
  }

  void enter(int port, int slot, bool write, uint64_t address, int beats, int64_t cycle) {
    const int64_t last = static_cast<int64_t>(address) + beats * beat_bytes_ - 1;
    const int64_t page = address / p_.row_bytes;
    Entry& entry = window_[entries_++];
    entry.enter = cycle << kFraction;
    entry.bank = static_cast<int>(page % p_.banks);
    entry.row = page / p_.banks;
    entry.port = static_cast<uint8_t>(port);
    entry.slot = static_cast<uint8_t>(slot);
    entry.write = write;
    entry.accesses =
        last / p_.burst_bytes - static_cast<int64_t>(address) / p_.burst_bytes + 1;
    // A burst over the end of a row is rare: it pays for the second row in full.
    entry.extra = last / p_.row_bytes != page ? p_.precharge + p_.activate : 0;
    count_[write] += entry.accesses;

    entry.claimed = false;
    if (write == direction_ && !waited_for(entry.bank)) claim(entry, entry.enter);
  }

  // Opens the row unless the bank's open row still has users; true if the row is the open one now.
  void claim(Entry& entry, Time now) {
    Bank& bank = banks_[entry.bank];
    if (bank.users == 0) open(bank, entry.row, now);
    if (bank.row != entry.row) return;
    entry.claimed = true;
    ++bank.users;
  }

  // Somebody older waits for another row of this bank: hits must not keep it waiting.
  bool waited_for(int bank) const {
    for (int i = 0; i < entries_ - 1; ++i)
      if (window_[i].bank == bank && window_[i].write == direction_ && !window_[i].claimed)
        return true;
    return false;
  }

  // Rows are opened ahead for one direction only: what the other asks for begins when the bus
  // turns round.
  void turn_round(Time now) {
    direction_ = !direction_;
    run_ = 0;
    for (Bank& bank : banks_) bank.users = 0;
    for (int i = 0; i < entries_; ++i) {
      Entry& entry = window_[i];
      entry.claimed = false;
      if (entry.write == direction_) claim(entry, now);
    }
  }

  void open(Bank& bank, int64_t row, Time now) {
    if (bank.row == row) return;
    Time act = bank.row < 0 ? std::max(now, bank.ready)
                            : std::max(now, bank.precharge_from) + p_.precharge;
    act = std::max(act, activates_[last_activate_] + p_.activate_spacing);
    last_activate_ = (last_activate_ + 1) % 4;
    act = std::max(act, activates_[last_activate_] + p_.four_activates);
    activates_[last_activate_] = act;
    bank.row = row;
    bank.ready = act + p_.activate;
    bank.precharge_from = act + p_.row_active;
  }

  // Serves one burst if one can start by `now`; else says when to look again.
  bool serve(Time now, Time* next) {
    if (entries_ == 0) return false;
    if (p_.refresh_interval > 0 && now >= next_refresh_) {
      do_refresh(now);
      if (bus_free_ > now) return false;
    }
    if (count_[!direction_] > 0 && (count_[direction_] == 0 || run_ >= p_.turn_accesses)) {
      turn_round(std::max(bus_free_, now - (1 << kFraction)));
      const Time turn = direction_ ? p_.read_to_write : p_.write_to_read;
      keep_bus(kTurn, bus_free_, bus_free_ + turn);
    }
    // The burst that can start first; the oldest of several. There is one: the oldest of a bank
    // is claimed.
    int best = -1;
    Time start = 0;
    for (int i = 0; i < entries_; ++i) {
      const Entry& entry = window_[i];
      if (!entry.claimed) continue;
      const Time at = std::max({bus_free_, entry.enter, banks_[entry.bank].ready});
      if (best >= 0 && at >= start) continue;
      best = i;
      start = at;
      if (at == bus_free_) break;
    }
    if (best < 0) return false;
    if (start > now) {
      *next = start;
      return false;
    }
    commit(best, start);
    return true;
  }

  void commit(int index, Time start) {
    const Entry entry = window_[index];
    --entries_;
    for (int i = index; i < entries_; ++i) window_[i] = window_[i + 1];
    count_[entry.write] -= entry.accesses;
    run_ += entry.accesses;

    const Time each = entry.write ? p_.write_access : p_.read_access;
    const Time end = start + entry.accesses * each + entry.extra;
    BusUse* use = keep_bus(entry.write ? kWrite : kRead, start, end);
    Bank& bank = banks_[entry.bank];
    bank.precharge_from =
        std::max(bank.precharge_from, end + (entry.write ? p_.write_recovery : 0));
    if (--bank.users == 0) hand_over(entry.bank, start);

    DramPort& port = ports_[entry.port];
    if (entry.write) {
      WriteBurst& burst = port.writes[entry.slot];
      finish_write(burst, end);
      if (use) describe(*use, entry, burst, burst.answer);
    } else {
      ReadBurst& burst = port.reads[entry.slot];
      std::memcpy(burst.data, memory_ + (burst.address - base_), burst.beats * beat_bytes_);
      // AXI ports that lead to one port of the controller take turns on it, burst by burst.
      const Time beat = beat_bytes_ * p_.controller_byte;
      Time& returning = returning_[p_.controller_port[entry.port]];
      start = std::max(start, returning);
      returning = start + burst.beats * beat;
      finish_read(burst, start, std::max(beat, (end - start) / burst.beats));
      if (use) describe(*use, entry, burst, ceil(burst.first + (burst.beats - 1) * burst.pace));
    }
  }

  BusUse* keep_bus(Use use, Time start, Time end) {
    bus_free_ = end;
    if (uses_ == nullptr) return nullptr;
    uses_->push_back({start, end, 0, 0, 0, 0, 0, 0, 0, use});
    return &uses_->back();
  }

  template <class Burst>
  void describe(BusUse& use, const Entry& entry, const Burst& burst, int64_t done) {
    use.accepted = burst.arrival - way_of(ports_[entry.port]);
    use.arrival = burst.arrival;
    use.enter = entry.enter >> kFraction;
    use.done = done;
    use.address = burst.address;
    use.bytes = static_cast<uint16_t>(burst.beats * beat_bytes_);
    use.port = entry.port;
  }

  // Cycles from an AXI port to the controller.
  int64_t way_of(const DramPort& port) const {
    return p_.request_cycles + p_.detour_cycles[&port - &ports_[0]];
  }

  // The row's last user is served: open the row of the oldest burst that waits for this bank.
  void hand_over(int number, Time now) {
    for (int i = 0; i < entries_; ++i) {
      Entry& entry = window_[i];
      if (entry.bank == number && entry.write == direction_ && !entry.claimed) claim(entry, now);
    }
  }

  void finish_read(ReadBurst& burst, Time start, Time pace) {
    burst.served = true;
    burst.first = start + (p_.return_cycles << kFraction);
    burst.pace = pace;
  }

  void finish_write(WriteBurst& burst, Time end) {
    burst.served = true;
    burst.answer = ceil(end) + p_.return_cycles;
  }

  void do_refresh(Time now) {
    next_refresh_ += (now - next_refresh_) / p_.refresh_interval * p_.refresh_interval;
    const Time start = std::max(bus_free_, next_refresh_);
    keep_bus(kRefresh, start, start + p_.precharge + p_.refresh);
    next_refresh_ += p_.refresh_interval;
    for (int i = 0; i < p_.banks; ++i) {
      Bank& bank = banks_[i];
      const int64_t row = bank.row;
      bank.row = -1;
      bank.ready = bus_free_;
      if (bank.users > 0) open(bank, row, bus_free_);
    }
  }

  const DramParameters p_;
  uint8_t* const memory_;
  const uint64_t base_;
  const uint64_t size_;
  const int port_count_;
  const int beat_bytes_;
  std::unique_ptr<DramPort[]> ports_;

  Entry window_[2 * kMaxWindow];  // by age
  int entries_ = 0;
  int64_t count_[2] = {0, 0};  // column accesses in the window: of reads, of writes
  Bank banks_[kMaxBanks];
  Time returning_[kMaxPorts] = {};  // until then the controller's port hands data over
  Time activates_[4] = {};  // the last four, a ring
  int last_activate_ = 0;
  Time bus_free_ = 0;
  Time next_refresh_ = 0;
  int direction_ = 0;  // 0 read, 1 write
  int64_t run_ = 0;    // column accesses since the bus turned round
  int turn_ = 0;
  bool waiting_for_room_ = false;
  int64_t wake_ = kNever;
  std::vector<BusUse>* uses_ = nullptr;
};

}  // namespace tokenfabric
