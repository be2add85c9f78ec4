"""Logits on their way to memory."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.ops import RES_BITS
from tokenfabric.rtl.activationissue import ActivationIssue
from tokenfabric.rtl.layouts import ADDRESS_BITS, matmul_result, write_beat
from tokenfabric.rtl.matmul import result_latency
from tokenfabric.rtl.memory import Fifo

__all__ = ["LogitsWriter", "in_flight"]


def in_flight(cfg: FabricConfig) -> int:
    """Rows that have entered the array, or still do, unknown to the ``room`` a block begins by.

    A row that enters in cycle t is a result in t + result_latency, and ActivationIssue knows of it
    both ROOM_LATENCY later. A column-block that begins in a cycle before that has not counted it,
    and at most one row enters per cycle. The block's own rows are not among these.
    """
    known = result_latency(cfg) + LogitsWriter.ROOM_LATENCY + ActivationIssue.ROOM_LATENCY
    return known - 1


class LogitsWriter(wiring.Component):
    """Puts chunks of logits into memory, as int32, at ``addr + 4 * C * block``.

    Takes a chunk per cycle without back-pressure; four bytes per lane make 4 beats per chunk, the
    first 3 cycles after the chunk at the earliest.

    Members
    -------
    valid : in, 1 bit; result : in, ``matmul_result``; addr : in, 32 bits: a chunk of logits, and
        where its row's logits begin, in bytes
    room : out, 1 bit: there is space for one more column-block of max_rows rows and for what is
        ``in_flight``
    beats : out, stream of ``write_beat``, to the Writer
    """

    ROOM_LATENCY = 3  # from a result to the ``room`` that counts it

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        self.reserve = cfg.max_rows + in_flight(cfg)
        # What is sent while the array, held back, fills anew: the port never waits for chunks.
        self.beats_per_chunk = cfg.cols * RES_BITS // (8 * cfg.port_bytes)
        sent = -(-in_flight(cfg) // self.beats_per_chunk)
        self.depth = 1 << (self.reserve + sent - 1).bit_length()
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
        capacity = self.depth + 1  # the register behind the memory holds one more
        beats = self.beats_per_chunk
        beat = Signal(range(beats))
        out = self.beats.payload
        # The address takes a cycle of its own: table look-up here, addition in the next stage.
        s1_valid = Signal()
        s1 = Signal(entry)
        m.d.sync += [
            s1_valid.eq(self.valid),
            s1.y.eq(self.result.y.as_value()),
            s1.addr.eq(self.addr + self.result.block * (4 * cfg.cols)),
            self.room.eq(fifo.level + self.reserve <= capacity),
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
