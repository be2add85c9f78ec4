// An SDR SDRAM, x16, at the pins of an FPGA: what it stores, and whether it is treated as its data
// sheet says. tests/rigs/sdram.py and tests/rigs/serial.cpp use it. The numbers are those of boards.SdramChip.
//
// Cycles are the FPGA's. The chip's clock edge comes between two of them: what the FPGA's pads put
// out at one edge is taken before the next, and a word that is read CAS latency 2 after that is
// taken by the FPGA's edge after next. Where nobody drives the data lines there is noise on them.

#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace tokenfabric {

struct SdramParameters {  // times in cycles
  int64_t bank_bits, row_bits, column_bits, activate, precharge, row_active, row_cycle, refresh,
      activate_spacing, write_recovery, power_up, mode, refresh_interval;
};

struct SdramPins {
  uint32_t command, bank, address, mask, dq, drive;
};

class Sdram {
 public:
  explicit Sdram(const SdramParameters& p)
      : p_(p),
        banks_(1u << p.bank_bits),
        words_(1ull << (p.bank_bits + p.row_bits + p.column_bits)),
        read_(kAhead, -1) {}

  // One clock edge. Returns the data lines as the FPGA's next edge finds them.
  uint32_t clock(const SdramPins& pins) {
    ++now_;
    command(pins);
    store(pins);
    if (pins.drive && now_ >= bus_from_ && now_ <= bus_to_) fail("both sides drive the data lines");
    if (booted_ && now_ - refreshed_ > 2 * p_.refresh_interval) fail("refreshes are late");
    masks_[now_ & 3] = pins.mask;
    noise_ = noise_ * 1664525 + 1013904223;
    uint32_t lines = noise_ >> 16;
    if (int64_t& due = read_[now_ % kAhead]; due >= 0) {
      const uint32_t hidden = masks_[(now_ + 3) & 3];  // of two edges before the word is taken
      lines = (lines & spread(hidden)) | (words_[due] & ~spread(hidden) & 0xFFFF);
      due = -1;
    }
    return lines & 0xFFFF;
  }

  // The first thing that was done wrong, "" if nothing was.
  const char* error() const { return error_.c_str(); }

 private:
  static constexpr int kBurst = 2, kCas = 2, kBootRefreshes = 2, kAhead = 8;
  static constexpr uint32_t kMode = 0b001 | kCas << 4;
  static constexpr int64_t kNever = -1'000'000'000;
  enum Command { kLoadMode = 0, kRefresh = 4, kPrecharge = 2, kActivate = 6, kWrite = 1, kRead = 5 };

  struct Bank {
    int64_t row = -1, activated = kNever, precharged = kNever, last_write = kNever;
  };

  static uint32_t spread(uint32_t mask) { return (mask & 1 ? 0xFF : 0) | (mask & 2 ? 0xFF00 : 0); }

  void fail(const char* what) {
    if (error_.empty()) error_ = "cycle " + std::to_string(now_) + ": " + what;
  }

  void need(bool condition, const char* what) {
    if (!condition) fail(what);
  }

  uint64_t at(uint32_t bank, uint32_t column, int64_t word) const {
    const uint64_t where = (column & ~(kBurst - 1u)) | ((column + word) & (kBurst - 1));
    const uint64_t row = std::max<int64_t>(banks_[bank].row, 0);
    return ((row << p_.bank_bits | bank) << p_.column_bits) + where;
  }

  void command(const SdramPins& pins) {
    const bool all = pins.address >> 10 & 1;
    if (pins.command == 7 || pins.command == 3) return;
    need(now_ > p_.power_up, "a command during power-up");
    need(now_ - mode_set_ >= p_.mode, "tMRD");
    need(now_ - refreshed_ >= p_.refresh, "tRFC");
    switch (pins.command) {
      case kActivate: return activate(pins);
      case kRead:
      case kWrite: return burst(pins);
      case kPrecharge:
        for (uint32_t bank = 0; bank < banks_.size(); ++bank) {
          if (all || bank == pins.bank) close(banks_[bank]);
        }
        prepared_ = prepared_ || all;
        return;
      case kRefresh:
        idle();
        ++refreshes_;
        refreshed_ = now_;
        return;
      case kLoadMode:
        idle();
        need(pins.address == kMode, "another mode than bursts of 2, in sequence, latency 2");
        need(refreshes_ >= kBootRefreshes, "two refreshes come before the mode");
        mode_set_ = now_;
        booted_ = true;
        return;
      default: fail("a burst stop");
    }
  }

  void idle() {
    need(prepared_, "no precharge of all banks at first");
    for (const Bank& bank : banks_) {
      need(bank.row < 0, "a row is open");
      need(now_ - bank.precharged >= p_.precharge, "tRP");
    }
  }

  void activate(const SdramPins& pins) {
    Bank& bank = banks_[pins.bank];
    need(booted_, "no mode has been set");
    need(bank.row < 0, "a row is open");
    need(now_ - bank.precharged >= p_.precharge, "tRP");
    need(now_ - bank.activated >= p_.row_cycle, "tRC");
    need(now_ - activated_ >= p_.activate_spacing, "tRRD");
    bank.row = pins.address & ((1u << p_.row_bits) - 1);
    bank.activated = activated_ = now_;
  }

  void close(Bank& bank) {
    if (bank.row >= 0) need(now_ - bank.activated >= p_.row_active, "tRAS");
    need(now_ - bank.last_write >= p_.write_recovery, "tWR");
    need(now_ - read_at_ >= kBurst, "a precharge ends a burst");
    bank.row = -1;
    bank.precharged = now_;
  }

  void burst(const SdramPins& pins) {
    need(banks_[pins.bank].row >= 0, "no row is open");
    need(now_ - banks_[pins.bank].activated >= p_.activate, "tRCD");
    need(!(pins.address >> 10), "a precharge that was not meant");
    need(now_ - read_at_ >= kBurst && now_ - wrote_at_ >= kBurst, "a burst ends another");
    const uint32_t column = pins.address & ((1u << p_.column_bits) - 1);
    if (pins.command == kRead) {
      read_at_ = now_;
      for (int word = 0; word < kBurst; ++word) {
        read_[(now_ + kCas - 1 + word) % kAhead] = at(pins.bank, column, word);
      }
      // From the chip's edge before the one at which the first word is taken.
      if (now_ > bus_to_) bus_from_ = now_ + kCas - 1;
      bus_to_ = now_ + kCas + kBurst - 1;
    } else {
      wrote_at_ = now_;
      write_bank_ = pins.bank;
      write_column_ = column;
    }
  }

  void store(const SdramPins& pins) {
    if (now_ - wrote_at_ >= kBurst) return;
    need(pins.drive, "nobody drives what is to be written");
    uint16_t& word = words_[at(write_bank_, write_column_, now_ - wrote_at_)];
    word = (word & spread(pins.mask)) | (pins.dq & ~spread(pins.mask) & 0xFFFF);
    banks_[write_bank_].last_write = now_;
  }

  const SdramParameters p_;
  std::vector<Bank> banks_;
  std::vector<uint16_t> words_;
  std::vector<int64_t> read_;  // words by the cycle in which they are on the lines, modulo kAhead
  int64_t now_ = 0, activated_ = kNever, refreshed_ = kNever, mode_set_ = kNever;
  int64_t read_at_ = kNever, wrote_at_ = kNever, bus_from_ = 0, bus_to_ = -1;
  uint32_t write_bank_ = 0, write_column_ = 0;
  bool prepared_ = false, booted_ = false;
  int refreshes_ = 0;
  uint32_t masks_[4] = {}, noise_ = 1;
  std::string error_;
};

}  // namespace tokenfabric
