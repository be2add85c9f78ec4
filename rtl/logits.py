"""Logits on their way to memory."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.ops import RES_BITS
from tokenfabric.rtl.layouts import ADDRESS_BITS, matmul_result, write_beat
from tokenfabric.rtl.memory import Fifo

__all__ = ["LogitsWriter", "in_flight"]


def in_flight(cfg: FabricConfig) -> int:
    """Results that can still arrive after ``room`` has fallen, beyond one column-block."""
    return 30 + cfg.tile_cycles


class LogitsWriter(wiring.Component):
    """Puts chunks of logits into memory, as int32, at ``addr + 4 * C * block``.

    Takes a chunk per cycle without back-pressure; four bytes per lane make 4 beats per chunk, the
    first 3 cycles after the chunk at the earliest.

    Members
    -------
    valid : in, 1 bit; result : in, ``matmul_result``; addr : in, 32 bits: a chunk of logits, and
        where its row's logits begin, in bytes
    room : out, 1 bit: there is space for one more column-block of max_rows rows and for what is in
        the pipeline
    beats : out, stream of ``write_beat``, to the Writer
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        self.depth = 1 << (cfg.max_rows + in_flight(cfg)).bit_length()
        super().__init__(
            {
                "valid": In(1),
                "result": In(matmul_result(cfg)),
                "addr": In(ADDRESS_BITS),
                "room": Out(1),
                "beats": Out(stream.Signature(write_beat(cfg))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg = self.cfg
        bits = cfg.cols * RES_BITS
        entry = data.StructLayout({"y": unsigned(bits), "addr": unsigned(ADDRESS_BITS)})
        m.submodules.fifo = fifo = Fifo(entry, self.depth)
        beats = bits // (8 * cfg.port_bytes)
        beat = Signal(range(beats))
        out = self.beats.payload
        # The address takes a cycle of its own: table look-up here, addition in the next stage.
        s1_valid = Signal()
        s1 = Signal(entry)
        m.d.sync += [
            s1_valid.eq(self.valid),
            s1.y.eq(self.result.y.as_value()),
            s1.addr.eq(self.addr + self.result.block * (4 * cfg.cols)),
            self.room.eq(fifo.level < self.depth - cfg.max_rows - in_flight(cfg)),
        ]
        m.d.comb += [
            fifo.i.valid.eq(s1_valid),
            fifo.i.payload.eq(s1),
            self.beats.valid.eq(fifo.o.valid),
            out.first.eq(beat == 0),
            out.last.eq(beat == beats - 1),
            out.addr.eq(fifo.o.payload.addr),
            out.data.eq(fifo.o.payload.y.word_select(beat, 8 * cfg.port_bytes)),
            out.strb.eq(~0),
            fifo.o.ready.eq(self.beats.ready & out.last),
        ]
        with m.If(self.beats.valid & self.beats.ready):
            m.d.sync += beat.eq(Mux(out.last, 0, beat + 1))
        return m
