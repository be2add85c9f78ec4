"""Where requantized results go."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.ops import ACT_BITS, RES_BITS
from tokenfabric.rtl.argmax import Argmax
from tokenfabric.rtl.layouts import (
    ADDRESS_BITS,
    CHUNK_BITS,
    MatmulDest,
    index_shape,
    matmul_result,
    write_beat,
)
from tokenfabric.rtl.logits import LogitsWriter
from tokenfabric.rtl.memory import Ram, read_port, write_port
from tokenfabric.rtl.pipeline import delays

__all__ = ["ResidualAdder", "SaturatedLanes", "SaturationCounter", "Writeback"]


def popcount(bits):
    """The number of ones in a small vector."""
    return sum((bits[i] for i in range(1, len(bits))), bits[0])


class SaturationCounter(wiring.Component):
    """16 counters of 32 bits; adds ``count`` to counter ``klass`` in every cycle with ``valid``.

    The 16 cycles after a reset clear them. A count is seen by readers in the next cycle.

    Members
    -------
    valid : in, 1 bit; klass : in, 4 bits; count : in: to be added
    read_class : in, 4 bits; read_count : out, 32 bits, combinational
    """

    def __init__(self, count_bits: int):
        super().__init__(
            {
                "valid": In(1),
                "klass": In(4),
                "count": In(count_bits),
                "read_class": In(4),
                "read_count": Out(32),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.ram = ram = Ram(16, 32, comb=True)
        m.submodules.copy = copy = Ram(16, 32, comb=True)
        clearing = Signal(5)
        with m.If(~clearing[4]):
            m.d.sync += clearing.eq(clearing + 1)
        m.d.comb += [
            ram.r.addr.eq(self.klass),
            ram.w.en.eq(self.valid | ~clearing[4]),
            ram.w.addr.eq(Mux(clearing[4], self.klass, clearing[:4])),
            ram.w.data.eq(Mux(clearing[4], ram.r.data + self.count, 0)),
            copy.w.en.eq(ram.w.en),
            copy.w.addr.eq(ram.w.addr),
            copy.w.data.eq(ram.w.data),
            copy.r.addr.eq(self.read_class),
            self.read_count.eq(copy.r.data),
        ]
        return m


class ResidualAdder(wiring.Component):
    """Adds chunks to the residual stream, saturating, or puts them in place of what was there.

    A chunk per cycle: read in stage 0, hold in stage 1, add in stage 2, saturate and write in stage
    3, visible to readers LATENCY cycles after the chunk. The same chunk of the stream may come
    again then at the earliest.

    Members
    -------
    valid, add : in, 1 bit each: a chunk; it is added, else it replaces
    dst : in, 16 bits: the chunk of the residual stream; y : in, C times int32
    res_r, res_w : out, read and write port of the residual stream, in chunks
    add_valid : out, 1 bit; add_count : out: so many lanes of a chunk saturated; LATENCY cycles
        after it
    """

    LATENCY = 4

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        res = cfg.cols * RES_BITS
        super().__init__(
            {
                "valid": In(1),
                "add": In(1),
                "dst": In(CHUNK_BITS),
                "y": In(data.ArrayLayout(signed(RES_BITS), cfg.cols)),
                "res_r": Out(read_port(CHUNK_BITS, res)),
                "res_w": Out(write_port(CHUNK_BITS, res)),
                "add_valid": Out(1),
                "add_count": Out(cfg.cols.bit_length()),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cols = self.cfg.cols
        m.d.comb += [self.res_r.en.eq(self.valid & self.add), self.res_r.addr.eq(self.dst)]
        valid = delays(m, self.valid, 3, name="res_valid", reset_less=False)
        keep = delays(m, self.add, 2, name="res_keep")
        dst = delays(m, self.dst, 3, name="res_dst")
        y = delays(m, self.y.as_value(), 2, name="res_y")
        s2_old = Signal(cols * RES_BITS, reset_less=True)
        s3_sum = Signal(data.ArrayLayout(signed(RES_BITS + 1), cols), reset_less=True)
        m.d.sync += s2_old.eq(self.res_r.data)
        over, lanes = [], []
        for i in range(cols):
            old = Mux(keep[2], s2_old.word_select(i, RES_BITS), 0).as_signed()
            with m.If(valid[2]):
                m.d.sync += s3_sum[i].eq(old + y[2].word_select(i, RES_BITS).as_signed())
            sum_ = s3_sum[i]
            wrapped = sum_[RES_BITS] ^ sum_[RES_BITS - 1]
            limit = Cat((~sum_[RES_BITS]).replicate(RES_BITS - 1), sum_[RES_BITS])
            lanes.append(Mux(wrapped, limit, sum_[:RES_BITS]))
            over.append(wrapped)
        m.d.comb += [
            self.res_w.en.eq(valid[3]),
            self.res_w.addr.eq(dst[3]),
            self.res_w.data.eq(Cat(lanes)),
        ]
        m.d.sync += [self.add_valid.eq(valid[3]), self.add_count.eq(popcount(Cat(over)))]
        return m


class SaturatedLanes(wiring.Component):
    """Counts the lanes of a result that saturated: of scores, only those up to the causal limit.

    A chunk per cycle, LATENCY cycles. What the mask hides takes no part in the softmax, so it does
    not count.

    Members
    -------
    valid : in, 1 bit; result : in, ``matmul_result``
    sat_valid : out, 1 bit: there are such lanes; sat_class : out, 4 bits, as the command says;
    sat_count : out: how many
    """

    LATENCY = 3

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "valid": In(1),
                "result": In(matmul_result(cfg)),
                "sat_valid": Out(1),
                "sat_class": Out(4),
                "sat_count": Out(cfg.cols.bit_length()),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cols, result = self.cfg.cols, self.result
        low = (cols - 1).bit_length()
        first = Cat(Signal(low), result.block)
        free = Signal(signed(18))  # positions from the first lane to the limit
        s1_saturated, s1_masked = Signal(cols), Signal()
        s1_valid, s1_class = Signal(), Signal(4)
        s2_flags, s2_valid, s2_class = Signal(cols), Signal(), Signal(4)
        m.d.sync += [
            free.eq(result.limit - first),
            s1_saturated.eq(result.saturated),
            s1_masked.eq(result.dest == MatmulDest.SCORES),
            s1_valid.eq(self.valid),
            s1_class.eq(result.sat),
            s2_flags.eq(Cat(s1_saturated[i] & (~s1_masked | (free >= i)) for i in range(cols))),
            s2_valid.eq(s1_valid),
            s2_class.eq(s1_class),
            self.sat_valid.eq(s2_valid & s2_flags.any()),
            self.sat_class.eq(s2_class),
            self.sat_count.eq(popcount(s2_flags)),
        ]
        return m


class Writeback(wiring.Component):
    """Puts each result where its ``dest`` says. Always ready; a result's effect is visible to
    readers LATENCY cycles later.

    OUT, OUT8: chunk to OUT. ATT: chunk to IN. RES: added to the residual stream. EMBED: takes its
    place.
    LOGITS: argmax, and to memory where ``dump`` of the index says so. SCORES: only counted.

    Members
    -------
    valid : in, 1 bit; result : in, ``matmul_result``, one per cycle
    out_w, in_w, res_w : out, write ports; res_r : out, read port; addresses in chunks
    vocab : in, 32 bits: channels that count
    dump_index : out, a row; dump, dump_addr : in, 1 bit and 32 bits: whether its logits go to
        memory, and the address in bytes; combinational
    room : out, 1 bit; beats : out, stream of ``write_beat``: as of :class:`LogitsWriter`
    best_index : in, a row; best_token : out, 32 bits: as of :class:`Argmax`
    sat_valid, sat_class, sat_count : out, as of :class:`SaturatedLanes`
    add_valid, add_count : out, as of :class:`ResidualAdder`
    busy : out, 1 bit: the effect of a result is still to come (beats to the Writer apart)
    """

    LATENCY = 8

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        act, res = cfg.cols * ACT_BITS, cfg.cols * RES_BITS
        count = cfg.cols.bit_length()
        super().__init__(
            {
                "valid": In(1),
                "result": In(matmul_result(cfg)),
                "out_w": Out(write_port(CHUNK_BITS, act)),
                "in_w": Out(write_port(CHUNK_BITS, act)),
                "res_r": Out(read_port(CHUNK_BITS, res)),
                "res_w": Out(write_port(CHUNK_BITS, res)),
                "vocab": In(32),
                "dump_index": Out(index_shape(cfg)),
                "dump": In(1),
                "dump_addr": In(ADDRESS_BITS),
                "room": Out(1),
                "beats": Out(stream.Signature(write_beat(cfg))),
                "best_index": In(index_shape(cfg)),
                "best_token": Out(32),
                "sat_valid": Out(1),
                "sat_class": Out(4),
                "sat_count": Out(count),
                "add_valid": Out(1),
                "add_count": Out(count),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.argmax = argmax = Argmax(self.cfg)
        m.submodules.logits = logits = LogitsWriter(self.cfg)
        m.submodules.residual = residual = ResidualAdder(self.cfg)
        m.submodules.saturated = saturated = SaturatedLanes(self.cfg)
        wiring.connect(m, logits.beats, wiring.flipped(self.beats))
        wiring.connect(m, residual.res_r, wiring.flipped(self.res_r))
        wiring.connect(m, residual.res_w, wiring.flipped(self.res_w))
        result, dest = self.result, self.result.dest
        chunk = Cat(y[:ACT_BITS] for y in result.y)
        to_out = (dest == MatmulDest.OUT) | (dest == MatmulDest.OUT8)
        is_logits = self.valid & (dest == MatmulDest.LOGITS)
        active = Signal(self.LATENCY)
        m.d.sync += active.eq(Cat(self.valid, active))
        m.d.comb += [
            self.out_w.en.eq(self.valid & to_out),
            self.out_w.addr.eq(result.dst),
            self.out_w.data.eq(chunk),
            self.in_w.en.eq(self.valid & (dest == MatmulDest.ATT)),
            self.in_w.addr.eq(result.dst),
            self.in_w.data.eq(chunk),
            self.dump_index.eq(result.index),
            logits.valid.eq(is_logits & self.dump),
            logits.result.eq(result),
            logits.addr.eq(self.dump_addr),
            self.room.eq(logits.room),
            argmax.valid.eq(is_logits),
            argmax.result.eq(result),
            argmax.vocab.eq(self.vocab),
            argmax.best_index.eq(self.best_index),
            self.best_token.eq(argmax.best_token),
            residual.valid.eq(self.valid & ((dest == MatmulDest.RES) | (dest == MatmulDest.EMBED))),
            residual.add.eq(dest == MatmulDest.RES),
            residual.dst.eq(result.dst),
            residual.y.eq(result.y),
            self.add_valid.eq(residual.add_valid),
            self.add_count.eq(residual.add_count),
            saturated.valid.eq(self.valid),
            saturated.result.eq(result),
            self.sat_valid.eq(saturated.sat_valid),
            self.sat_class.eq(saturated.sat_class),
            self.sat_count.eq(saturated.sat_count),
            self.busy.eq(self.valid | active.any()),
        ]
        return m
