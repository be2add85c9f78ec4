"""Vector unit: what APPEND writes to the KV cache, and where."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core import ops
from tokenfabric.core.config import FabricConfig
from tokenfabric.rtl.chunkwalk import Part
from tokenfabric.rtl.layouts import ADDRESS_BITS, row_record, write_beat
from tokenfabric.rtl.memory import Fifo
from tokenfabric.rtl.pipeline import delay
from tokenfabric.rtl.vectorissue import BEATS, RESULT

__all__ = ["AppendBeats", "CacheAddress"]


class CacheAddress(wiring.Component):
    """Where a K, scale or V burst goes: ``addr`` is LATENCY cycles behind the chunk.

    One chunk per cycle.

    Members
    -------
    k_base, scale_base, v_offset : in, of the layer, and from K to V; constant while a command runs
    kv_head, scale_head : in, from one head to the next; constant too. All these in bytes, 32 bits
    row : in, ``row_record``; part : in, :class:`Part`: of the chunk
    head_end, row_end : in, 1 bit: this chunk is the last of a head, of a row
    addr : out, 32 bits, device address in bytes
    """

    LATENCY = RESULT
    SUM_LATENCY = 4  # of the additions; then the address waits for the data

    def __init__(self, cfg: FabricConfig):
        super().__init__(
            {
                "k_base": In(ADDRESS_BITS),
                "scale_base": In(ADDRESS_BITS),
                "v_offset": In(ADDRESS_BITS),
                "kv_head": In(ADDRESS_BITS),
                "scale_head": In(ADDRESS_BITS),
                "row": In(row_record(cfg)),
                "part": In(Part),
                "head_end": In(1),
                "row_end": In(1),
                "addr": Out(ADDRESS_BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()

        def stage(n, name):
            return Signal(ADDRESS_BITS, name=f"s{n}_{name}", reset_less=True)

        s1_kv_head, s1_scale_head = Signal(ADDRESS_BITS), Signal(ADDRESS_BITS)
        s1_row_end = delay(m, self.row_end, 1, "row_end", reset_less=False)
        s1_head_end = delay(m, self.head_end, 1, "head_end", reset_less=False)
        with m.If(s1_row_end):
            m.d.sync += [s1_kv_head.eq(0), s1_scale_head.eq(0)]
        with m.Elif(s1_head_end):
            m.d.sync += [
                s1_kv_head.eq(s1_kv_head + self.kv_head),
                s1_scale_head.eq(s1_scale_head + self.scale_head),
            ]
        s1_kv, s2_kv, s3_kv = (stage(n, "kv") for n in (1, 2, 3))
        s4_addr = Signal(ADDRESS_BITS, name="s4_addr")
        s1_scale, s2_scale, s3_scale = (stage(n, "scale") for n in (1, 2, 3))
        s2_part = delay(m, self.part, 2, "part")
        s3_is_scale = delay(m, s2_part == Part.SCALE, 1, "is_scale")
        s2_position = delay(m, self.row.position, 2, "position")
        m.d.sync += [
            s1_kv.eq(self.k_base + self.row.kv_row),
            s2_kv.eq(s1_kv + s1_kv_head),
            s3_kv.eq(s2_kv + Mux(s2_part == Part.V, self.v_offset, 0)),
            s1_scale.eq(self.scale_base + self.row.scale_slot),
            s2_scale.eq(s1_scale + s1_scale_head),
            s3_scale.eq(s2_scale + (s2_position << 1)),
            s4_addr.eq(Mux(s3_is_scale, s3_scale, s3_kv)),
        ]
        m.d.comb += self.addr.eq(delay(m, s4_addr, self.LATENCY - self.SUM_LATENCY, "addr"))
        return m


class AppendBeats(wiring.Component):
    """Makes beats for the Writer of what the lanes computed: K and V as int8, and the scale.

    Takes a chunk in every cycle, without back-pressure: who issues chunks must leave room for them
    among the BEATS beats that can wait here. A beat can leave 2 cycles after its chunk came, one
    per cycle.

    Members
    -------
    valid : in, 1 bit; part, first, last, addr, y : in, a chunk: :class:`Part`, the ends of its
        burst, the address of the burst in bytes, C signed 16-bit values (K and V: within int8)
    beats : out, stream of ``write_beat``
    taken, left : out, 1 bit each: a beat leaves in this cycle; there are beats
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "valid": In(1),
                "part": In(Part),
                "first": In(1),
                "last": In(1),
                "addr": In(ADDRESS_BITS),
                "y": In(data.ArrayLayout(signed(ops.ACT_BITS), cfg.cols)),
                "beats": Out(stream.Signature(write_beat(cfg))),
                "taken": Out(1),
                "left": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        port_bytes = self.cfg.port_bytes
        m.submodules.fifo = fifo = Fifo(write_beat(self.cfg), BEATS)
        wiring.connect(m, wiring.flipped(self.beats), fifo.o)
        scale, beat = self.part == Part.SCALE, fifo.i.payload
        byte = self.addr[1 : (port_bytes - 1).bit_length()]
        int8s = Cat(self.y[i][:8] for i in range(self.cfg.cols))
        m.d.comb += [
            fifo.i.valid.eq(self.valid),
            beat.first.eq(self.first),
            beat.last.eq(self.last),
            beat.addr.eq(self.addr),
            beat.data.eq(Mux(scale, self.y[0].replicate(port_bytes // 2), int8s)),
            beat.strb.eq(Mux(scale, 3 << Cat(0, byte), (1 << port_bytes) - 1)),
            self.taken.eq(self.beats.valid & self.beats.ready),
            self.left.eq(fifo.level != 0),
        ]
        return m
