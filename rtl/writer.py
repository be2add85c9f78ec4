"""Writing DRAM: beats collected into bursts on the write channels of one port."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from tokenfabric.core.config import FabricConfig
from tokenfabric.rtl.axi import write_master
from tokenfabric.rtl.burst import BLOCK_BITS, WindowCheck, beat_bits, burst
from tokenfabric.rtl.layouts import ADDRESS_BITS, windows, write_beat
from tokenfabric.rtl.memory import Fifo

__all__ = ["Collector", "Writer"]

OUTSTANDING = 8  # responses
BEATS = 32  # waiting; more than a burst, so that a whole one always fits
BURSTS = 8  # waiting


def _collected(cfg: FabricConfig) -> data.StructLayout:
    return data.StructLayout(
        {
            "data": unsigned(8 * cfg.port_bytes),
            "strb": unsigned(cfg.port_bytes),
            "last": unsigned(1),
        }
    )


class Collector(wiring.Component):
    """Beats into bursts: a burst ends with ``last`` or before the next aligned block of 16 beats.

    One beat per cycle; a burst is put out when its last beat has come.

    Members
    -------
    i : stream of write_beat, in
    bursts : stream of burst, out
    beats : stream of {data, strb, last of the burst}, out
    closed : out, strobe, a burst is complete
    open : out, a run of beats has begun and its last has not come
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "i": In(stream.Signature(write_beat(cfg))),
                "bursts": Out(stream.Signature(burst(cfg))),
                "beats": Out(stream.Signature(_collected(cfg))),
                "closed": Out(1),
                "open": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.bursts = bursts = Fifo(burst(self.cfg), BURSTS)
        m.submodules.beats = beats = Fifo(_collected(self.cfg), BEATS)
        connect(m, bursts.o, flipped(self.bursts))
        connect(m, beats.o, flipped(self.beats))
        i, low = self.i, beat_bits(self.cfg)
        following = Signal(ADDRESS_BITS - low)  # beat address after the one before
        here = Signal.like(following)
        count = Signal(BLOCK_BITS)  # beats of the burst so far
        take = Signal()
        close = Signal()
        m.d.comb += [
            here.eq(Mux(i.payload.first, i.payload.addr >> low, following)),
            close.eq(i.payload.last | here[:BLOCK_BITS].all()),
            i.ready.eq(beats.i.ready & bursts.i.ready),
            take.eq(i.valid & i.ready),
            self.closed.eq(take & close),
            beats.i.valid.eq(take),
            beats.i.payload.data.eq(i.payload.data),
            beats.i.payload.strb.eq(i.payload.strb),
            beats.i.payload.last.eq(close),
            bursts.i.valid.eq(self.closed),
            # The burst lies in one block, so its first beat is count beats back in that block.
            bursts.i.payload.addr.eq(
                Cat(Const(0, low), (here[:BLOCK_BITS] - count)[:BLOCK_BITS], here[BLOCK_BITS:])
            ),
            bursts.i.payload.beats.eq(count + 1),
        ]
        with m.If(take):
            m.d.sync += [
                following.eq(here + 1),
                count.eq(Mux(close, 0, count + 1)),
                self.open.eq(~i.payload.last),
            ]
        return m


class Writer(wiring.Component):
    """Writes runs of contiguous beats; AW goes out when its burst is complete, its W beats with it.

    A burst of n beats takes n cycles when the port is ready; at most 8 responses are outstanding. A
    burst outside the window raises ``error_window`` and is never announced, nor is any after it.

    Members
    -------
    beats : stream of write_beat, in
    axi : write_master, out
    windows : in, steady while bursts come
    halt : in, no burst is announced any more; those announced are finished
    quiet : out, nothing is in flight; while ``halt`` it stays so
    idle : out, no run of beats has begun or waits, and every response is in
    error_window, error_axi : out, stay high until reset
    beat : out, strobe for each W beat that was accepted
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "beats": In(stream.Signature(write_beat(cfg))),
                "axi": Out(write_master(cfg.port_bytes)),
                "windows": In(windows()),
                "halt": In(1),
                "quiet": Out(1),
                "idle": Out(1),
                "error_window": Out(1),
                "error_axi": Out(1),
                "beat": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        axi = self.axi
        m.submodules.collector = collector = Collector(self.cfg)
        m.submodules.check = check = WindowCheck(self.cfg)
        taken = Signal()  # a register between who writes and the collector
        beat = Signal.like(self.beats.payload, reset_less=True)
        m.d.comb += [
            self.beats.ready.eq(~taken | collector.i.ready),
            collector.i.valid.eq(taken),
            collector.i.payload.eq(beat),
        ]
        with m.If(self.beats.ready):
            m.d.sync += [taken.eq(self.beats.valid), beat.eq(self.beats.payload)]
        connect(m, collector.bursts, check.i)
        free = Signal()  # AW can take a burst, and W its beats right after
        issue = Signal()
        sending = Signal()
        sent = Signal()  # the burst's last beat goes
        outstanding = Signal(range(OUTSTANDING + 1))
        m.d.comb += [
            check.windows.eq(self.windows),
            free.eq((~axi.awvalid | axi.awready) & (~sending | sent) & ~self.halt),
            check.o.ready.eq(free & (outstanding < OUTSTANDING) & check.o.payload.ok),
            issue.eq(check.o.valid & check.o.ready),
            axi.wvalid.eq(sending & collector.beats.valid),
            Cat(axi.wdata, axi.wstrb, axi.wlast).eq(collector.beats.payload),
            collector.beats.ready.eq(sending & axi.wready),
            sent.eq(axi.wvalid & axi.wready & axi.wlast),
            axi.awsize.eq(beat_bits(self.cfg)),
            axi.awburst.eq(1),
            axi.bready.eq(1),
        ]
        with m.If(issue):
            m.d.sync += [axi.awvalid.eq(1), axi.awaddr.eq(check.o.payload.addr)]
            m.d.sync += [axi.awlen.eq(check.o.payload.len), sending.eq(1)]
        with m.Else():
            m.d.sync += [axi.awvalid.eq(axi.awvalid & ~axi.awready), sending.eq(sending & ~sent)]
        with m.If(check.o.valid & ~check.o.payload.ok):
            m.d.sync += self.error_window.eq(1)
        with m.If(axi.bvalid & (axi.bresp != 0)):
            m.d.sync += self.error_axi.eq(1)
        self.account(m, collector, issue, outstanding, taken)
        return m

    def account(self, m, collector, issue, outstanding, taken):
        axi = self.axi
        unanswered = Signal(range(BURSTS + OUTSTANDING + 8))  # bursts from complete to response
        m.d.comb += [
            self.quiet.eq(outstanding == 0),
            self.idle.eq(~taken & ~collector.open & (unanswered == 0)),
        ]
        # After a download a response may still come to what the design before wrote.
        answer = axi.bvalid & (outstanding != 0)
        m.d.sync += [
            outstanding.eq(outstanding + issue - answer),
            unanswered.eq(unanswered + collector.closed - answer),
            self.beat.eq(axi.wvalid & axi.wready),
        ]
