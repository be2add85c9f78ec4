"""Fetched beats to whom they are for, and where those wait that nobody takes at once."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.ops import ACT_BITS, MULT_BITS
from tokenfabric.rtl.layouts import BeatTag, fetch_beat
from tokenfabric.rtl.memory import Fifo, Ram, read_port

__all__ = ["RopeRows", "Router"]


class RopeRows(wiring.Component):
    """The RoPE rows of a step, one for each of its rows, written in order.

    Chunk ``c`` of row ``r`` is at address ``r * max_head_chunks + c``. One chunk in and one out per
    cycle; a chunk can be read in the cycle after it came, which takes a cycle.

    Members
    -------
    en : in, ``chunk`` is the next of its row
    chunk : in, cols * 16 bits
    last : in, with ``en``: the last chunk of its row
    restart : in, strobe: the row that comes next is row 0 again; not in the cycle of a chunk
    r : read_port of chunks, in
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        chunk = cfg.cols * ACT_BITS
        address = max(1, (cfg.max_rows * cfg.max_head_chunks - 1).bit_length())
        super().__init__(
            {
                "en": In(1),
                "chunk": In(chunk),
                "last": In(1),
                "restart": In(1),
                "r": In(read_port(address, chunk)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        rows, chunks = self.cfg.max_rows, self.cfg.max_head_chunks
        m.submodules.ram = ram = Ram(rows * chunks, len(self.chunk))
        row, at = Signal(range(rows)), Signal(range(chunks))
        wiring.connect(m, wiring.flipped(self.r), ram.r)
        m.d.comb += [
            ram.w.en.eq(self.en),
            ram.w.addr.eq(Cat(at, row) if chunks > 1 else row),
            ram.w.data.eq(self.chunk),
        ]
        with m.If(self.en):
            m.d.sync += at.eq(Mux(self.last, 0, at + 1))
        with m.If(self.restart):
            m.d.sync += row.eq(0)
        with m.Elif(self.en & self.last):
            m.d.sync += row.eq(row + 1)
        return m


class Router(wiring.Component):
    """Hands each fetched beat to whom its tag names; only embedding rows and scales make it wait.

    RoPE rows and scales come as chunks of two beats each, the low half first. Combinational to the
    takers of single beats, one beat per cycle; a scale's chunk takes two cycles through its queue,
    which holds the scales of two whole contexts.

    Members
    -------
    beats : stream of fetch_beat, in; none has the tag KV
    data : out, the beat's 8 * port_bytes bits, for ``descriptor`` and ``program``
    descriptor, program : out, strobes: ``data`` are the next beat of the job descriptor, of the
        program
    described, loaded : out, since the cycle after the last beat of the descriptor, of the program;
        until reset
    embed : stream of fetch_beat, out
    scales : stream of chunks of cols multipliers, out
    restart : in, strobe: the RoPE rows that come next are those of another step
    rope_r : read_port of chunks, in, see :class:`RopeRows`
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        self.rope = RopeRows(cfg)
        super().__init__(
            {
                "beats": In(stream.Signature(fetch_beat(cfg))),
                "data": Out(8 * cfg.port_bytes),
                "descriptor": Out(1),
                "program": Out(1),
                "described": Out(1),
                "loaded": Out(1),
                "embed": Out(stream.Signature(fetch_beat(cfg))),
                "scales": Out(stream.Signature(cfg.cols * MULT_BITS)),
                "restart": In(1),
                "rope_r": self.rope.signature.members["r"],
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg, beats, beat, rope = self.cfg, self.beats, self.beats.payload, self.rope
        m.submodules.rope = rope
        m.submodules.scales = scales = Fifo(cfg.cols * MULT_BITS, 2 * cfg.max_context // cfg.cols)
        wiring.connect(m, wiring.flipped(self.rope_r), rope.r)
        wiring.connect(m, scales.o, wiring.flipped(self.scales))
        low, is_high = Signal(8 * cfg.port_bytes), Signal()
        chunk = Cat(low, beat.data)
        taken = beats.valid & beats.ready
        m.d.comb += [
            self.data.eq(beat.data),
            self.embed.payload.eq(beat),
            scales.i.payload.eq(chunk),
            rope.chunk.eq(chunk),
            rope.last.eq(beat.last),
            rope.restart.eq(self.restart),
        ]
        with m.If(taken & ((beat.tag == BeatTag.ROPE) | (beat.tag == BeatTag.SCALE))):
            m.d.sync += [low.eq(beat.data), is_high.eq(~is_high)]
        with m.Switch(beat.tag):
            with m.Case(BeatTag.DESCRIPTOR):
                m.d.comb += [beats.ready.eq(1), self.descriptor.eq(beats.valid)]
                with m.If(taken & beat.last):
                    m.d.sync += self.described.eq(1)
            with m.Case(BeatTag.PROGRAM):
                m.d.comb += [beats.ready.eq(1), self.program.eq(beats.valid)]
                with m.If(taken & beat.last):
                    m.d.sync += self.loaded.eq(1)
            with m.Case(BeatTag.ROPE):
                m.d.comb += [beats.ready.eq(1), rope.en.eq(beats.valid & is_high)]
            with m.Case(BeatTag.EMBED):
                m.d.comb += [beats.ready.eq(self.embed.ready), self.embed.valid.eq(beats.valid)]
            with m.Case(BeatTag.SCALE):
                m.d.comb += [
                    beats.ready.eq(~is_high | scales.i.ready),
                    scales.i.valid.eq(beats.valid & is_high),
                ]
        return m
