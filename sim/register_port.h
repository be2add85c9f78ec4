// The AXI4-Lite master on the design's registers: one transaction at a time, with a check of the
// AXI rules. `drive` and `sample` as in memory_port.h.

#pragma once

#include <cstdint>

#include "Vtop.h"
#include "bus.h"

namespace tokenfabric {

class RegisterPort {
 public:
  RegisterPort(Bus& bus, Vtop& top) : bus_(bus), top_(top) {}

  // Begins a transaction; the next `drive` shows it.
  void begin(bool write, uint32_t address, uint32_t data) {
    clear();
    (write ? write_ : read_) = true;
    address_ = address;
    data_ = data;
  }

  // Forgets the transaction under way, if any.
  void clear() {
    write_ = read_ = false;
    showing_address_ = showing_data_ = false;
    address_done_ = data_done_ = done_ = false;
    answer_waiting_ = false;
  }

  bool done() const { return done_; }
  uint32_t data() const { return static_cast<uint32_t>(answer_); }  // of a read
  int response() const { return static_cast<int>(write_ ? answer_ : answer_ >> 32); }

  void drive() {
    showing_address_ |= (read_ || write_) && !address_done_ && !bus_.held();
    showing_data_ |= write_ && !data_done_ && !bus_.held();
    top_.s_axi_ctrl_awvalid = write_ && showing_address_;
    top_.s_axi_ctrl_arvalid = read_ && showing_address_;
    top_.s_axi_ctrl_wvalid = showing_data_;
    top_.s_axi_ctrl_awaddr = top_.s_axi_ctrl_araddr = static_cast<SData>(address_);
    top_.s_axi_ctrl_wdata = data_;
    top_.s_axi_ctrl_wstrb = 15;
    top_.s_axi_ctrl_bready = write_ && !done_ && !bus_.held();
    top_.s_axi_ctrl_rready = read_ && !done_ && !bus_.held();
  }

  void sample() {
    const bool address = write_ ? top_.s_axi_ctrl_awready : top_.s_axi_ctrl_arready;
    if (showing_address_ && address) address_done_ = true, showing_address_ = false;
    if (showing_data_ && top_.s_axi_ctrl_wready) data_done_ = true, showing_data_ = false;

    const bool b = top_.s_axi_ctrl_bvalid, r = top_.s_axi_ctrl_rvalid;
    const bool b_expected = write_ && address_done_ && data_done_ && !done_;
    const bool r_expected = read_ && address_done_ && !done_;
    if ((b && !b_expected) || (r && !r_expected))
      return bus_.fail("s_axi_ctrl: response without a request");
    const uint64_t payload = b ? top_.s_axi_ctrl_bresp
                               : top_.s_axi_ctrl_rdata | uint64_t{top_.s_axi_ctrl_rresp} << 32;
    if (answer_waiting_) {
      if (!b && !r)
        return bus_.fail("s_axi_ctrl: %s dropped before ready", write_ ? "bvalid" : "rvalid");
      if (payload != answer_)
        return bus_.fail("s_axi_ctrl: %s changed before ready",
                         write_ ? "bresp" : "rdata or rresp");
    }
    answer_ = payload;
    done_ |= (b && top_.s_axi_ctrl_bready) || (r && top_.s_axi_ctrl_rready);
    answer_waiting_ = (b || r) && !done_;
  }

  // In a cycle without a transaction, in place of `sample`.
  void check_silent() {
    if (top_.s_axi_ctrl_bvalid | top_.s_axi_ctrl_rvalid)
      bus_.fail("s_axi_ctrl: response without a request");
  }

 private:
  Bus& bus_;
  Vtop& top_;
  bool write_ = false, read_ = false;
  uint32_t address_ = 0, data_ = 0;
  bool showing_address_ = false, showing_data_ = false;
  bool address_done_ = false, data_done_ = false, done_ = false;
  bool answer_waiting_ = false;
  uint64_t answer_ = 0;  // data and response
};

}  // namespace tokenfabric
