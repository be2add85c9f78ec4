"""Where requantized results go."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.ops import ACT_BITS, RES_BITS
from tokenfabric.rtl.layouts import (
    ADDRESS_BITS,
    CHUNK_BITS,
    MatmulDest,
    index_shape,
    matmul_result,
    write_beat,
)
from tokenfabric.rtl.memory import Fifo, Ram, read_port, write_port
from tokenfabric.rtl.pipeline import delay, delays

__all__ = ["Argmax", "LogitsWriter", "SaturationCounter", "Writeback"]


def in_flight(cfg: FabricConfig) -> int:
    """Results that can still arrive after ``room`` has fallen, beyond one column-block."""
    return 30 + cfg.tile_cycles


def popcount(bits):
    """The number of ones in a small vector."""
    return sum((bits[i] for i in range(1, len(bits))), bits[0])


class Argmax(wiring.Component):
    """The largest logit of each index and its channel; the lowest channel wins a tie.

    Takes a chunk per cycle; a block 0 begins anew. The same index comes again after 4 cycles at the
    earliest. ``best_token`` of ``best_index`` is right LATENCY cycles after the last chunk.

    Members: ``valid``, ``result`` (In), ``vocab`` (In: channels that count), ``best_index`` (In),
    ``best_token`` (Out, combinational).
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        self.levels = (cfg.cols - 1).bit_length()
        self.LATENCY = self.levels + 3
        super().__init__(
            {
                "valid": In(1),
                "result": In(matmul_result(cfg)),
                "vocab": In(32),
                "best_index": In(index_shape(cfg)),
                "best_token": Out(32),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cols = self.cfg.cols
        # Stage 0 counts the channels that are left, stage 1 gives those beyond the vocabulary the
        # smallest value: they lose every tie.
        left = Signal(signed(33))
        s0_y = Signal.like(self.result.y)
        m.d.sync += [
            left.eq(self.vocab - Cat(Signal(self.levels), self.result.block)),
            s0_y.eq(self.result.y),
        ]
        lanes = [
            (Signal(signed(RES_BITS), name=f"s1_y{i}"), Signal(self.levels, name=f"s1_lane{i}"))
            for i in range(cols)
        ]
        for i, (y, lane) in enumerate(lanes):
            m.d.comb += lane.eq(i)
            m.d.sync += y.eq(Mux(left > i, s0_y[i], -(1 << (RES_BITS - 1))))
        for level in range(self.levels):
            halved = []
            for i in range(0, len(lanes), 2):
                (a, a_lane), (b, b_lane) = lanes[i], lanes[i + 1]
                y = Signal(signed(RES_BITS), name=f"s{level + 2}_y{i}")
                lane = Signal(self.levels, name=f"s{level + 2}_lane{i}")
                m.d.sync += [y.eq(Mux(b > a, b, a)), lane.eq(Mux(b > a, b_lane, a_lane))]
                halved.append((y, lane))
            lanes = halved
        (y, lane), token_bits, stages = lanes[0], 16 + self.levels, self.levels + 2
        valid = delay(m, self.valid, stages, "valid", reset_less=False)
        index, block = (
            delay(m, getattr(self.result, name), stages, name) for name in ("index", "block")
        )
        entry = data.StructLayout({"y": signed(RES_BITS), "token": unsigned(token_bits)})
        m.submodules.best = best = Ram(self.cfg.max_rows, entry.size, comb=True)
        m.submodules.tokens = tokens = Ram(self.cfg.max_rows, token_bits, comb=True)
        held, new = data.View(entry, best.r.data), Signal(entry)
        m.d.comb += [
            best.r.addr.eq(index),
            new.y.eq(y),
            new.token.eq(Cat(lane, block)),
            best.w.addr.eq(index),
            best.w.data.eq(new),
            best.w.en.eq(valid & ((block == 0) | (y > held.y))),
            tokens.w.addr.eq(index),
            tokens.w.data.eq(new.token),
            tokens.w.en.eq(best.w.en),
            tokens.r.addr.eq(self.best_index),
            self.best_token.eq(tokens.r.data),
        ]
        return m


class LogitsWriter(wiring.Component):
    """Puts chunks of logits into memory, as int32, at ``addr + 4 * C * block``.

    ``room`` promises space for one more column-block of max_rows rows and what is in the pipeline.
    ``beats`` goes to the Writer: four bytes per lane make ``4`` beats per chunk.
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


class SaturationCounter(wiring.Component):
    """16 counters of 32 bits; adds ``count`` to counter ``klass`` in every cycle with ``valid``.

    The 16 cycles after a reset clear them. Members: ``valid``, ``klass``, ``count`` (In);
    ``read_class`` (In), ``read_count`` (Out, combinational).
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


class Writeback(wiring.Component):
    """Puts each result where its ``dest`` says. Always ready; a result's effect is visible to
    readers LATENCY cycles later.

    OUT, OUT8: chunk to OUT. ATT: chunk to IN. RES: added to the residual stream. EMBED: takes its
    place.
    LOGITS: argmax, and to memory where ``dump`` of the index says so. SCORES: only counted.

    Members: ``valid``, ``result`` (In); memory ports ``out_w``, ``in_w``, ``res_r``, ``res_w``;
    ``vocab``, ``dump_index`` (Out) with ``dump``, ``dump_addr`` (In, combinational); ``room``,
    ``beats``; ``best_index``, ``best_token``; ``sat_valid``/``sat_class``/``sat_count`` and, for
    the additions to the residual stream, ``add_valid``/``add_count``; ``busy``.
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
        wiring.connect(m, logits.beats, wiring.flipped(self.beats))
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
            self.busy.eq(self.valid | active.any()),
        ]
        self._residual(m)
        self._saturations(m)
        return m

    def _residual(self, m):
        """Read in stage 0, hold in stage 1, add in stage 2, saturate and write in stage 3."""
        cols, dest = self.cfg.cols, self.result.dest
        m.d.comb += [
            self.res_r.en.eq(self.valid & (dest == MatmulDest.RES)),
            self.res_r.addr.eq(self.result.dst),
        ]
        is_res = (dest == MatmulDest.RES) | (dest == MatmulDest.EMBED)
        valid = delays(m, self.valid & is_res, 3, name="res_valid", reset_less=False)
        keep = delays(m, dest == MatmulDest.RES, 2, name="res_keep")
        dst = delays(m, self.result.dst, 3, name="res_dst")
        y = delays(m, self.result.y.as_value(), 2, name="res_y")
        s2_old = Signal(cols * RES_BITS)
        s3_sum = Signal(data.ArrayLayout(signed(RES_BITS + 1), cols))
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

    def _saturations(self, m):
        """Scores count only where the causal mask lets them take part."""
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
