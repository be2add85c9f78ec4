"""Requantize: from accumulators to 8, 16 or 32 bits."""

from __future__ import annotations

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.config import ACC_BITS, FabricConfig
from tokenfabric.core.ops import MULT_BITS, RES_BITS
from tokenfabric.rtl.accumulate import sums_layout
from tokenfabric.rtl.mac import multiply
from tokenfabric.rtl.pipeline import delays

__all__ = ["Requantize"]

LOW_BITS = 17  # of the accumulator: the most that one unsigned operand of a DSP takes
HIGH_BITS = ACC_BITS - LOW_BITS
PRODUCT_BITS = ACC_BITS + MULT_BITS
ROUND_BITS = RES_BITS + 2  # a sum that is rounded before it is known to fit


class Requantize(wiring.Component):
    """``saturate(ops.requantize(acc, mult, shift), bits)`` on C lanes, one chunk per cycle.

    Two multipliers a lane: the low 17 bits of the accumulator and the rest. Rounding adds the bit
    below the last one: the same as adding half and flooring.

    Parameters
    ----------
    tag : shape of what a chunk brings along

    Members
    -------
    valid : in, 1 bit; acc : in, ``sums_layout``; mult : in, C times uint16; tag : in: a chunk
    shift : in, 6 bits; bits : in, 2 bits (0: 8, 1: 16, 2: 32): how to finish it
    out_valid, y, saturated, out_tag : out, 1 bit, C times int32, a flag per lane, and what the
        chunk brought along: the result, LATENCY cycles later
    """

    LATENCY = 8

    def __init__(self, cfg: FabricConfig, tag):
        self.cfg = cfg
        super().__init__(
            {
                "valid": In(1),
                "acc": In(sums_layout(cfg)),
                "mult": In(data.ArrayLayout(unsigned(MULT_BITS), cfg.cols)),
                "shift": In(6),
                "bits": In(2),
                "tag": In(tag),
                "out_valid": Out(1),
                "y": Out(data.ArrayLayout(signed(RES_BITS), cfg.cols)),
                "saturated": Out(cfg.cols),
                "out_tag": Out(tag),
            }
        )

    def elaborate(self, platform):
        m = Module()
        valid = delays(m, self.valid, self.LATENCY, name="valid", reset_less=False)
        tag = delays(m, self.tag, self.LATENCY, name="tag")
        shift = delays(m, self.shift, 4, name="shift")
        bits = delays(m, self.bits, 7, name="bits")
        m.d.comb += [self.out_valid.eq(valid[-1]), Value.cast(self.out_tag).eq(tag[-1])]
        for c in range(self.cfg.cols):
            product = self._product(m, valid, self.acc[c], self.mult[c], c)
            shifted = self._shift(m, valid, product, shift, c)
            y, over = self._saturate(m, valid, shifted, bits, c)
            m.d.comb += [self.y[c].eq(y), self.saturated[c].eq(over)]
        return m

    def _product(self, m: Module, valid, acc, mult, c: int) -> Signal:
        """Stages 1 to 3."""
        s1_acc = Signal(signed(ACC_BITS), name=f"s1_acc{c}", reset_less=True)
        s1_mult = Signal(MULT_BITS, name=f"s1_mult{c}", reset_less=True)
        s2_low = Signal(LOW_BITS + MULT_BITS, name=f"s2_low{c}", reset_less=True)
        s2_high = Signal(signed(HIGH_BITS + MULT_BITS), name=f"s2_high{c}", reset_less=True)
        s3_low = Signal(LOW_BITS, name=f"s3_low{c}", reset_less=True)
        s3_high = Signal(signed(HIGH_BITS + MULT_BITS), name=f"s3_high{c}", reset_less=True)
        with m.If(valid[0]):
            m.d.sync += [s1_acc.eq(acc), s1_mult.eq(mult)]
        with m.If(valid[1]):
            m.d.sync += [
                s2_low.eq(multiply(s1_acc[:LOW_BITS], s1_mult)),
                s2_high.eq(multiply(s1_acc[LOW_BITS:].as_signed(), s1_mult)),
            ]
        with m.If(valid[2]):
            m.d.sync += [
                s3_low.eq(s2_low[:LOW_BITS]),
                s3_high.eq(s2_high + s2_low[LOW_BITS:]),
            ]
        return Cat(s3_low, s3_high)

    def _shift(self, m: Module, valid, product, shift, c: int) -> Signal:
        """Stages 4 and 5: the shifted product with one more bit, the one that rounds."""
        s4 = Signal(signed(PRODUCT_BITS + 1), name=f"s4_{c}", reset_less=True)
        s5 = Signal(signed(PRODUCT_BITS + 1), name=f"s5_{c}", reset_less=True)
        with m.If(valid[3]):
            m.d.sync += s4.eq(Cat(C(0, 1), product).as_signed() >> Cat(C(0, 2), shift[3][2:]))
        with m.If(valid[4]):
            m.d.sync += s5.eq(s4 >> shift[4][:2])
        return s5

    def _saturate(self, m: Module, valid, shifted, bits, c: int) -> tuple[Signal, Signal]:
        """Stages 6 to 8. What does not fit ``ROUND_BITS - 1`` bits is saturated by its sign."""
        s6_wide = Signal(name=f"s6_wide{c}", reset_less=True)
        s6_sign = Signal(name=f"s6_sign{c}", reset_less=True)
        s6 = Signal(signed(ROUND_BITS), name=f"s6_{c}", reset_less=True)
        y = Signal(RES_BITS, name=f"y{c}", reset_less=True)
        s7 = Signal(signed(RES_BITS), name=f"s7_{c}", reset_less=True)
        s7_over = Signal(name=f"s7_over{c}", reset_less=True)
        s7_sign = Signal(name=f"s7_sign{c}", reset_less=True)
        s8_over = Signal(name=f"s8_over{c}", reset_less=True)
        floor = shifted[1:]
        with m.If(valid[5]):
            m.d.sync += [
                s6_wide.eq(_differ(floor[ROUND_BITS - 2 :])),
                s6_sign.eq(floor[-1]),
                s6.eq(floor[: ROUND_BITS - 1].as_signed() + shifted[0]),
            ]
        over = Signal(name=f"over{c}")
        limit = Signal(RES_BITS, name=f"limit{c}")
        with m.Switch(bits[6]):
            for code, size in enumerate((8, 16, 32)):
                with m.Case(code):
                    m.d.comb += over.eq(s6_wide | _differ(s6[size - 1 :]))
        with m.Switch(bits[7]):
            for code, size in enumerate((8, 16, 32)):
                with m.Case(code):
                    largest = C((1 << (size - 1)) - 1, RES_BITS)
                    m.d.comb += limit.eq(largest ^ s7_sign.replicate(RES_BITS))
        with m.If(valid[6]):
            m.d.sync += [s7.eq(s6), s7_over.eq(over), s7_sign.eq(s6_sign)]
        with m.If(valid[7]):
            m.d.sync += [y.eq(Mux(s7_over, limit, s7)), s8_over.eq(s7_over)]
        return y, s8_over


def _differ(bits: Value) -> Value:
    """Whether the bits are not all equal: more than the sign of a number."""
    return bits.any() & ~bits.all()
