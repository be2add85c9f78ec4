"""Base-2 exponentials of a chunk of scores, and their sum over a row."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core import ops
from tokenfabric.rtl.mac import multiply
from tokenfabric.rtl.memory import Rom

__all__ = ["ALIGN_BITS", "EXP_BITS", "SCORE", "Exponential", "ExponentialLane", "RowTotal"]

ALIGN_BITS = 4  # the scores have 10 - align fraction bits
EXP_BITS = 24
DROP_BITS = 18  # of the table's slopes
PRODUCT_BITS = 22  # of a slope and what is left of the fraction
SCORE = signed(ops.ACT_BITS)
LATENCY = 8


class ExponentialLane(wiring.Component):
    """``ops.softmax_exp`` of one score, 0 where ``mask`` is 0: a pipeline of LATENCY stages.

    d = maximum - score is split into a shift and 10 fraction bits; the table gives 2**-fraction. A
    score that is masked or too small takes the longest shift, which leaves nothing.

    Members
    -------
    enable : in, LATENCY bits: stage n takes what the one before it has
    score, maximum : in, SCORE; score is at most maximum where ``mask``
    mask : in, 1 bit
    align : in, ALIGN_BITS, steady
    e : out, EXP_BITS, LATENCY cycles later
    """

    LATENCY = LATENCY

    def __init__(self):
        super().__init__(
            {
                "enable": In(LATENCY),
                "score": In(SCORE),
                "maximum": In(SCORE),
                "mask": In(1),
                "align": In(ALIGN_BITS),
                "e": Out(EXP_BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        enable = self.enable

        def stage(n: int, name: str, width: int):
            return Signal(width, name=f"s{n}_{name}", reset_less=True)

        s0_d, s0_mask = stage(0, "d", 16), stage(0, "mask", 1)
        s1_frac, s1_shift = stage(1, "frac", ops.EXP_FRAC), stage(1, "shift", 5)
        s2_base, s2_drop = stage(2, "base", EXP_BITS), stage(2, "drop", DROP_BITS)
        s2_rem, s2_shift = stage(2, "rem", ops.EXP_REM_BITS), stage(2, "shift", 5)
        s3_base, s3_product = stage(3, "base", EXP_BITS), stage(3, "product", PRODUCT_BITS)
        s3_shift = stage(3, "shift", 5)
        s4_e, s4_shift = stage(4, "e", EXP_BITS), stage(4, "shift", 5)
        s5_e, s5_shift = stage(5, "e", EXP_BITS + 1), stage(5, "shift", 2)  # one more, to round
        s6_e = stage(6, "e", EXP_BITS + 1)

        base, drop = ops.exp_table()
        m.submodules.base = base_rom = Rom(base, EXP_BITS)
        m.submodules.drop = drop_rom = Rom(drop, DROP_BITS)
        m.d.comb += base_rom.addr.eq(s1_frac[ops.EXP_REM_BITS :])
        m.d.comb += drop_rom.addr.eq(s1_frac[ops.EXP_REM_BITS :])

        d = s0_d << self.align
        gone = ~s0_mask | d[ops.EXP_FRAC + 5 :].any()
        shift = Mux(gone, 31, d[ops.EXP_FRAC :])
        rem = s1_frac[: ops.EXP_REM_BITS]
        with m.If(enable[0]):
            m.d.sync += [s0_d.eq(self.maximum - self.score), s0_mask.eq(self.mask)]
        with m.If(enable[1]):
            m.d.sync += [s1_frac.eq(d), s1_shift.eq(shift)]
        with m.If(enable[2]):
            m.d.sync += [s2_base.eq(base_rom.data), s2_drop.eq(drop_rom.data)]
            m.d.sync += [s2_rem.eq(rem), s2_shift.eq(s1_shift)]
        with m.If(enable[3]):
            m.d.sync += [s3_base.eq(s2_base), s3_product.eq(multiply(s2_drop, s2_rem))]
            m.d.sync += s3_shift.eq(s2_shift)
        with m.If(enable[4]):
            m.d.sync += s4_e.eq(s3_base - (s3_product >> ops.EXP_REM_BITS))
            m.d.sync += s4_shift.eq(s3_shift)
        with m.If(enable[5]):
            m.d.sync += [s5_e.eq(Cat(0, s4_e) >> (s4_shift & 0b11100)), s5_shift.eq(s4_shift)]
        with m.If(enable[6]):
            m.d.sync += s6_e.eq(s5_e >> s5_shift)
        with m.If(enable[7]):
            m.d.sync += self.e.eq(s6_e[1:] + s6_e[0])
        return m


class Exponential(wiring.Component):
    """An ExponentialLane for each lane of a chunk. One chunk per cycle, no back-pressure.

    Members
    -------
    valid, scores, maximum, mask : in, 1 bit, ``lanes`` x SCORE, SCORE, ``lanes`` bits; scores of
        unmasked lanes are at most ``maximum``
    align : in, ALIGN_BITS, constant while anything is in flight
    e_valid, e : out, 1 bit, ``lanes`` x EXP_BITS, LATENCY cycles later
    """

    LATENCY = LATENCY

    def __init__(self, lanes: int):
        self.lanes = lanes
        super().__init__(
            {
                "valid": In(1),
                "scores": In(data.ArrayLayout(SCORE, lanes)),
                "maximum": In(SCORE),
                "mask": In(lanes),
                "align": In(ALIGN_BITS),
                "e_valid": Out(1),
                "e": Out(data.ArrayLayout(EXP_BITS, lanes)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        valid = Signal(LATENCY)
        m.d.sync += valid.eq(Cat(self.valid, valid))
        m.d.comb += self.e_valid.eq(valid[-1])
        for index in range(self.lanes):
            m.submodules[f"lane_{index}"] = lane = ExponentialLane()
            m.d.comb += [
                lane.enable.eq(Cat(self.valid, valid)),
                lane.score.eq(self.scores[index]),
                lane.maximum.eq(self.maximum),
                lane.mask.eq(self.mask[index]),
                lane.align.eq(self.align),
                self.e[index].eq(lane.e),
            ]
        return m


class RowTotal(wiring.Component):
    """Sum of the exponentials of each row: a tree over the lanes, then an accumulator.

    One chunk per cycle, rows back to back.

    Members
    -------
    valid, last, e : in, 1 bit, 1 bit, ``lanes`` x EXP_BITS: a chunk; the last of its row
    total_valid, total : out, 1 bit, ``bits``: of a row, LATENCY cycles after its last chunk
    """

    def __init__(self, lanes: int, bits: int):
        self.lanes = lanes
        self.levels = lanes.bit_length() - 1
        self.LATENCY = self.levels + 1
        super().__init__(
            {
                "valid": In(1),
                "last": In(1),
                "e": In(data.ArrayLayout(EXP_BITS, lanes)),
                "total_valid": Out(1),
                "total": Out(bits),
            }
        )

    def elaborate(self, platform):
        m = Module()
        valid, last = Signal(self.levels), Signal(self.levels, reset_less=True)
        m.d.sync += [valid.eq(Cat(self.valid, valid)), last.eq(Cat(self.last, last))]
        values, enable = [self.e[lane] for lane in range(self.lanes)], self.valid
        for level in range(self.levels):
            count = len(values) // 2
            layout = data.ArrayLayout(EXP_BITS + level + 1, count)
            sums = Signal(layout, name=f"s{level}_sum", reset_less=True)
            with m.If(enable):
                m.d.sync += [sums[i].eq(values[2 * i] + values[2 * i + 1]) for i in range(count)]
            values, enable = [sums[i] for i in range(count)], valid[level]

        first = Signal(init=1)
        m.d.sync += self.total_valid.eq(valid[-1] & last[-1])
        with m.If(valid[-1]):
            m.d.sync += [
                self.total.eq(Mux(first, 0, self.total) + values[0]),
                first.eq(last[-1]),
            ]
        return m
