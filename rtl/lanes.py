"""The arithmetic of the vector unit: one lane pipeline with two multipliers, and the sigmoid."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core import ops
from tokenfabric.rtl.mac import multiply
from tokenfabric.rtl.memory import Rom
from tokenfabric.rtl.pipeline import delay, register

__all__ = ["Lanes", "ShiftRound", "Sigmoid", "VectorLane", "clamp"]

A_BITS = 18  # operands of the first multiplier
B_BITS = 25
T_BITS = 25  # operands of the second
C_BITS = 17  # an int16, or one negated
P1_BITS = 40
SUM_BITS = 39


def clamp(value, bits: int):
    """``fixed.saturate`` of a signed ``value`` to ``bits`` bits, and whether that changed it."""
    sign, above = value[-1], value[bits - 1 : -1]
    changed = above != sign.replicate(len(above))
    limit = Cat((~sign).replicate(bits - 1), sign)
    return Mux(changed, limit, value[:bits]).as_signed(), changed


class ShiftRound(wiring.Component):
    """``y = rshift_round(x, n)``, LATENCY cycles later, one per cycle; register ``y``.

    Shifts with one more bit below, then adds that bit: the half that rounding adds. Two bits of n
    per cycle, so that each bit of x costs one LUT per cycle.

    Parameters
    ----------
    bits : of x and y, both signed

    Members
    -------
    x : in, signed; n : in, 6 bits; y : out, signed
    """

    LATENCY = 3

    def __init__(self, bits: int):
        super().__init__({"x": In(signed(bits)), "n": In(6), "y": Out(signed(bits))})

    def elaborate(self, platform):
        m = Module()
        s1_x, s2_x, s3_x = (
            Signal(signed(len(self.x) + 1), name=f"s{i}_x", reset_less=True) for i in (1, 2, 3)
        )
        s1_n = delay(m, self.n[:4], 1, "s1_n")
        s2_n = delay(m, s1_n[:2], 1, "s2_n")
        m.d.sync += [
            s1_x.eq(Cat(Const(0, 1), self.x).as_signed() >> Cat(Const(0, 4), self.n[4:])),
            s2_x.eq(s1_x >> Cat(Const(0, 2), s1_n[2:])),
            s3_x.eq(s2_x >> s2_n),
        ]
        m.d.comb += self.y.eq((s3_x >> 1) + s3_x[0])
        return m


class Sigmoid(wiring.Component):
    """``s = ops.sigmoid(x, align)``, LATENCY cycles later, one per cycle; ``align`` is constant.

    No multiplier: the 11 x 9 bits of the interpolation are added up in LUTs.

    Members
    -------
    x : in, signed 16 bits; align : in, 6 bits; s : out, 16 bits, unsigned
    """

    LATENCY = 7

    def __init__(self):
        super().__init__({"x": In(signed(ops.ACT_BITS)), "align": In(6), "s": Out(16)})

    def elaborate(self, platform):
        m = Module()
        base_table, rise_table = ops.sigmoid_table()
        m.submodules.base = base = Rom(base_table, 16)
        m.submodules.rise = rise = Rom(rise_table, int(rise_table.max()).bit_length())
        rem_bits, z_bits = ops.SIGMOID_REM_BITS, ops.SIGMOID_REM_BITS + ops.SIGMOID_SEG_BITS

        def stage(n, name, bits):
            return Signal(bits, name=f"s{n}_{name}", reset_less=True)

        # |x| << align, in two steps, each saturating to 15 bits
        s1_size, s2_z, s2_over, s3_z = (
            stage(1, "size", 16),
            stage(2, "z", 15),
            stage(2, "over", 1),
            stage(3, "z", 15),
        )
        step1, step2 = Signal(28), Signal(18)
        m.d.comb += [
            step1.eq(s1_size << Cat(Const(0, 2), self.align[2:4])),
            step2.eq(s2_z << self.align[:2]),
        ]
        m.d.sync += [
            s1_size.eq(Mux(self.x[-1], -self.x, self.x)),
            s2_z.eq(step1),
            s2_over.eq((step1[z_bits:] != 0) | ((self.align[4:] != 0) & (s1_size != 0))),
            s3_z.eq(step2[:z_bits] | (s2_over | (step2[z_bits:] != 0)).replicate(z_bits)),
        ]
        # base + (rise * rem >> 9), as three products with 3 bits of rem
        s4_base, s4_rise, s4_rem = stage(4, "base", 16), stage(4, "rise", 11), stage(4, "rem", 9)
        s5_base, s5_parts = stage(5, "base", 16), [stage(5, f"part{i}", 14) for i in range(3)]
        s6_base, s6_product = stage(6, "base", 16), stage(6, "product", 20)
        s5_negative = delay(m, self.x[-1], 5, "negative")
        s6_negative = delay(m, s5_negative, 1, "s6_negative")
        m.d.comb += [base.addr.eq(s3_z[rem_bits:]), rise.addr.eq(s3_z[rem_bits:])]
        m.d.sync += [
            s4_base.eq(base.data),
            s4_rise.eq(rise.data),
            s4_rem.eq(s3_z[:rem_bits]),
            s5_base.eq(s4_base),
            s6_base.eq(Mux(s5_negative, -s5_base, s5_base)),  # 2**16 - base
            s6_product.eq(s5_parts[0] + (s5_parts[1] << 3) + (s5_parts[2] << 6)),
        ]
        for i, part in enumerate(s5_parts):
            bits = [s4_rem[3 * i + k].replicate(11) for k in range(3)]
            m.d.sync += part.eq(sum((s4_rise & bit) << k for k, bit in enumerate(bits)))
        rises = s6_product >> rem_bits
        m.d.sync += self.s.eq(Mux(s6_negative, s6_base - rises, s6_base + rises))
        return m


class VectorLane(wiring.Component):
    """One lane of :class:`Lanes`, with the same latencies; a set of operands per cycle.

    What all lanes have in common comes ready-made: ``s<n>_`` inputs are due n cycles after the
    operands. Half: what rounding adds before the shift.

    Members
    -------
    a, b, a2, c : in, signed 18, 25, 16 and 17 bits
    s1_half, s2_shift : in, 39 and 5 bits: half of the first shift, and that shift
    s4_add, s4_half : in, 1 and 38 bits: ``add``, and half of the second shift
    s7_shift : in, 6 bits: the second shift
    product, y, saturated : out, signed 40 and 16 bits, and 1 bit
    """

    def __init__(self):
        super().__init__(
            {
                "a": In(signed(A_BITS)),
                "b": In(signed(B_BITS)),
                "a2": In(signed(ops.ACT_BITS)),
                "c": In(signed(C_BITS)),
                "s1_half": In(P1_BITS - 1),
                "s2_shift": In(5),
                "s4_add": In(1),
                "s4_half": In(SUM_BITS - 1),
                "s7_shift": In(6),
                "product": Out(signed(P1_BITS)),
                "y": Out(signed(ops.ACT_BITS)),
                "saturated": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()

        def stage(name, bits, *numbers):
            return [Signal(signed(bits), name=f"s{n}_{name}", reset_less=True) for n in numbers]

        s1_p1, s3_p1, s4_p1 = stage("p1", P1_BITS, 1, 3, 4)
        (s5_t,), (s6_p2,) = stage("t", T_BITS, 5), stage("p2", SUM_BITS, 6)
        s5_keep, s6_keep = stage("keep", SUM_BITS, 5, 6)
        s7_sum, s8_sum, s9_sum, s10_sum = stage("sum", SUM_BITS, 7, 8, 9, 10)
        s4_a2, s5_c = delay(m, self.a2, 4, "a2"), delay(m, self.c, 5, "c")
        s3_shift = delay(m, self.s2_shift[:3], 1, "s3_shift")
        s4_shift = delay(m, s3_shift[0], 1, "s4_shift")
        s8_shift = delay(m, self.s7_shift[:4], 1, "s8_shift")
        s9_shift = delay(m, s8_shift[:2], 1, "s9_shift")
        s4_t = Mux(s4_shift, s4_p1 >> 1, s4_p1)
        limited, changed = clamp(s10_sum, ops.ACT_BITS)
        product, y = register(m, self.product), register(m, self.y)
        m.d.sync += [
            s1_p1.eq(multiply(self.a, self.b)),
            product.eq(s1_p1 + self.s1_half),
            s3_p1.eq(product >> Cat(Const(0, 3), self.s2_shift[3:])),
            s4_p1.eq(s3_p1 >> Cat(Const(0, 1), s3_shift[1:])),
            s5_t.eq(Mux(self.s4_add, s4_a2, s4_t)),
            s5_keep.eq(Mux(self.s4_add, s4_t, self.s4_half)),
            s6_p2.eq(multiply(s5_t, s5_c)),
            s6_keep.eq(s5_keep),
            s7_sum.eq(s6_p2 + s6_keep),
            s8_sum.eq(s7_sum >> Cat(Const(0, 4), self.s7_shift[4:])),
            s9_sum.eq(s8_sum >> Cat(Const(0, 2), s8_shift[2:])),
            s10_sum.eq(s9_sum >> s9_shift),
            y.eq(limited),
            self.saturated.eq(changed),
        ]
        return m


class Lanes(wiring.Component):
    """``cols`` lanes of two multipliers: everything the vector unit computes on a chunk.

    With ``t = rshift_round(a * b, shift1)``, after LATENCY cycles
    ``y = saturate(rshift_round(t + a2 * c if add else t * c, shift2), 16)``; ``saturated`` says
    where that clamped. ``product`` is a * b, PRODUCT_LATENCY cycles after operands with shift1 = 0
    and without ``add``. One chunk per cycle, no back-pressure; controls come with the operands.

    What rounding adds goes into the multipliers' own adders, so with ``add`` one of the shifts must
    be 0. ``t`` is not saturated: it must fit 25 bits (33 with ``add``), and the sum 38. ``ops``
    clamps t to 22 bits in a norm, but |x| <= ||x|| keeps it to 2**20 and a little.

    Parameters
    ----------
    cols : number of lanes

    Members
    -------
    a, b, a2, c : in, signed 18, 25, 16 and 17 bits: registers, to be absorbed by the multipliers
    add, shift1, shift2 : in, 1, 5 and 6 bits: controls
    product, y, saturated : out, signed 40 and 16 bits, and 1 bit, of each lane
    """

    PRODUCT_LATENCY = 2
    LATENCY = 11

    def __init__(self, cols: int):
        self.cols = cols
        super().__init__(
            {
                "a": In(data.ArrayLayout(signed(A_BITS), cols)),
                "b": In(data.ArrayLayout(signed(B_BITS), cols)),
                "a2": In(data.ArrayLayout(signed(ops.ACT_BITS), cols)),
                "c": In(data.ArrayLayout(signed(C_BITS), cols)),
                "add": In(1),
                "shift1": In(5),
                "shift2": In(6),
                "product": Out(data.ArrayLayout(signed(P1_BITS), cols)),
                "y": Out(data.ArrayLayout(signed(ops.ACT_BITS), cols)),
                "saturated": Out(cols),
            }
        )

    def elaborate(self, platform):
        m = Module()
        s1_half = Signal(31, reset_less=True)  # half of a shift of 5 bits
        s4_half = Signal(SUM_BITS - 1, reset_less=True)
        s1_shift2 = Signal(range(SUM_BITS), reset_less=True)
        early = self.add & (self.shift1 == 0)  # shift2 rounds t + a2 * c: half is added to t
        m.d.sync += [
            s1_half.eq((1 << Mux(early, self.shift2[:5], self.shift1)) >> 1),
            # From SUM_BITS - 1 on, all that is left is 0.
            s1_shift2.eq(Mux(self.shift2 < SUM_BITS - 1, self.shift2, SUM_BITS - 1)),
            s4_half.eq((1 << delay(m, s1_shift2, 2, "half")) >> 1),
        ]
        s2_shift, s4_add = delay(m, self.shift1, 2, "shift1"), delay(m, self.add, 4, "add")
        s7_shift = delay(m, s1_shift2, 6, "shift2")
        for i in range(self.cols):
            m.submodules[f"lane{i}"] = lane = VectorLane()
            m.d.comb += [
                lane.a.eq(self.a[i]),
                lane.b.eq(self.b[i]),
                lane.a2.eq(self.a2[i]),
                lane.c.eq(self.c[i]),
                lane.s1_half.eq(s1_half),
                lane.s2_shift.eq(s2_shift),
                lane.s4_add.eq(s4_add),
                lane.s4_half.eq(s4_half),
                lane.s7_shift.eq(s7_shift),
                self.product[i].eq(lane.product),
                self.y[i].eq(lane.y),
                self.saturated[i].eq(lane.saturated),
            ]
        return m
