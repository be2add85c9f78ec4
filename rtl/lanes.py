"""The arithmetic of the vector unit: one lane pipeline with two multipliers, and the sigmoid."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.rtl.mac import multiply
from tokenfabric.rtl.memory import Rom

from tokenfabric import ops

__all__ = ["Lane", "Lanes", "ShiftRound", "Sigmoid", "clamp", "delay"]

A_BITS = 18  # operands of the first multiplier
C_BITS = 17  # second operand of the second: an int16, or one negated
T_BITS = 25  # first operand of the second
SUM_BITS = 38
P1_BITS = 2 * A_BITS


def delay(m: Module, value, cycles: int, name: str, *, reset_less=True):
    """``value``, ``cycles`` cycles later: plain registers, which become shift register LUTs.

    What says that data are valid must be reset (``reset_less=False``).
    """
    for n in range(cycles):
        later = Signal.like(value, name=f"{name}_d{n + 1}", reset_less=reset_less)
        m.d.sync += later.eq(value)
        value = later
    return value


def clamp(value, bits: int):
    """``fixed.saturate`` of a signed ``value`` to ``bits`` bits, and whether that changed it."""
    sign, above = value[-1], value[bits - 1 : -1]
    changed = above != sign.replicate(len(above))
    limit = Cat((~sign).replicate(bits - 1), sign)
    return Mux(changed, limit, value[:bits]).as_signed(), changed


class ShiftRound(wiring.Component):
    """``y = rshift_round(x, n)``, LATENCY cycles later, one per cycle; register ``y``.

    Shifts with one more bit below, then adds that bit: the half that rounding adds.

    Parameters
    ----------
    bits : of x and y, both signed
    n_bits : of n, unsigned, at most 6
    """

    LATENCY = 2

    def __init__(self, bits: int, n_bits: int = 6):
        super().__init__({"x": In(signed(bits)), "n": In(n_bits), "y": Out(signed(bits))})

    def elaborate(self, platform):
        m = Module()
        bits = len(self.x) + 1
        s1_x, s2_x = (Signal(signed(bits), name=f"s{i}_x", reset_less=True) for i in (1, 2))
        s1_n = Signal(4, reset_less=True)
        m.d.sync += [
            s1_x.eq(Cat(Const(0, 1), self.x).as_signed() >> Cat(Const(0, 4), self.n[4:])),
            s1_n.eq(self.n),
            s2_x.eq(s1_x >> s1_n),
        ]
        m.d.comb += self.y.eq((s2_x >> 1) + s2_x[0])
        return m


class Sigmoid(wiring.Component):
    """``s = ops.sigmoid(x, align)``, LATENCY cycles later, one per cycle; ``align`` is constant.

    No multiplier: the 11 x 9 bits of the interpolation are added up in LUTs.
    """

    LATENCY = 6

    def __init__(self):
        super().__init__({"x": In(signed(ops.ACT_BITS)), "align": In(6), "s": Out(16)})

    def elaborate(self, platform):
        m = Module()
        base_table, rise_table = ops.sigmoid_table()
        m.submodules.base = base = Rom(base_table, 16)
        m.submodules.rise = rise = Rom(rise_table, int(rise_table.max()).bit_length())
        rem_bits, seg_bits = ops.SIGMOID_REM_BITS, ops.SIGMOID_SEG_BITS
        z_bits = rem_bits + seg_bits

        def stage(n, name, shape):
            return Signal(shape, name=f"s{n}_{name}", reset_less=True)

        s1_size, s2_z, s2_over = stage(1, "size", 16), stage(2, "z", 31), stage(2, "over", 1)
        negative = delay(m, self.x[-1], 4, "negative")
        m.d.sync += [
            s1_size.eq(Mux(self.x[-1], -self.x, self.x)),
            s2_z.eq(s1_size << self.align[:4]),
            s2_over.eq((self.align[4:] != 0) & (s1_size != 0)),
        ]
        z = Mux(s2_over | (s2_z[z_bits:] != 0), Const(-1, unsigned(z_bits)), s2_z[:z_bits])
        m.d.comb += [base.addr.eq(z[rem_bits:]), rise.addr.eq(z[rem_bits:])]

        s3_base, s3_rise, s3_rem = stage(3, "base", 16), stage(3, "rise", 11), stage(3, "rem", 9)
        m.d.sync += [s3_base.eq(base.data), s3_rise.eq(rise.data), s3_rem.eq(z[:rem_bits])]

        s4_base, s5_base = stage(4, "base", 16), stage(5, "base", 16)
        s4_parts = [stage(4, f"part{i}", 14) for i in range(3)]
        for i, part in enumerate(s4_parts):
            m.d.sync += part.eq(
                sum((s3_rise & s3_rem[3 * i + k].replicate(11)) << k for k in range(3))
            )
        s5_product = stage(5, "product", 20)
        s5_negative = delay(m, negative, 1, "s5_negative")
        m.d.sync += [
            s4_base.eq(s3_base),
            s5_product.eq(s4_parts[0] + (s4_parts[1] << 3) + (s4_parts[2] << 6)),
            s5_base.eq(Mux(negative, -s4_base, s4_base)),  # 2**16 - base
        ]
        rise_part = s5_product >> rem_bits
        m.d.sync += self.s.eq(Mux(s5_negative, s5_base - rise_part, s5_base + rise_part))
        return m


class Lane(wiring.Component):
    """One lane of :class:`Lanes`; the controls arrive with the stage that uses them.

    ``s<n>_`` inputs count n cycles after the operands.
    """

    def __init__(self):
        super().__init__(
            {
                "a": In(signed(A_BITS)),
                "b": In(signed(A_BITS)),
                "a2": In(signed(ops.ACT_BITS)),
                "c": In(signed(C_BITS)),
                "s1_norm": In(1),
                "s1_shift": In(5),
                "s3_add": In(1),
                "s6_shift": In(6),
                "product": Out(signed(P1_BITS)),
                "y": Out(signed(ops.ACT_BITS)),
                "saturated": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.first = first = ShiftRound(P1_BITS + 4, 5)
        m.submodules.second = second = ShiftRound(SUM_BITS)

        def stage(n, name, bits):
            return Signal(signed(bits), name=f"s{n}_{name}", reset_less=True)

        s4_t, s4_keep, s5_keep = stage(4, "t", T_BITS), stage(4, "keep", 33), stage(5, "keep", 33)
        s4_c = delay(m, self.c, 4, "c")
        s3_a2 = delay(m, self.a2, 3, "a2")
        s5_p2, s6_sum = stage(5, "p2", SUM_BITS), stage(6, "sum", SUM_BITS)
        s9_wide = stage(9, "wide", SUM_BITS)
        m.d.sync += self.product.eq(multiply(self.a, self.b))
        m.d.comb += [
            first.x.eq(Mux(self.s1_norm, self.product << 4, self.product)),
            first.n.eq(self.s1_shift),
            second.x.eq(s6_sum),
            second.n.eq(self.s6_shift),
        ]
        limited, changed = clamp(s9_wide, ops.ACT_BITS)
        m.d.sync += [
            s4_t.eq(Mux(self.s3_add, s3_a2, first.y)),
            s4_keep.eq(Mux(self.s3_add, first.y, 0)),
            s5_keep.eq(s4_keep),
            s5_p2.eq(multiply(s4_t, s4_c)),
            s6_sum.eq(s5_keep + s5_p2),
            s9_wide.eq(second.y),
            self.y.eq(limited),
            self.saturated.eq(changed),
        ]
        return m


class Lanes(wiring.Component):
    """``cols`` lanes of two multipliers: everything the vector unit computes on a chunk.

    ``p1 = a * b`` comes out as ``product`` after PRODUCT_LATENCY cycles. With
    ``t = rshift_round(p1 << 4 if norm else p1, shift1)``, after LATENCY cycles
    ``y = saturate(rshift_round(t + a2 * c if add else t * c, shift2), 16)`` and ``saturated`` says
    where that clamped. One chunk per cycle, no back-pressure; the controls come with the operands.

    ``t`` is not saturated: it must fit 25 bits (33 with ``add``), and the sum 38 bits. ``ops``
    clamps t to 22 bits in a norm, but |x| <= ||x|| keeps it to 2**20 and a little.

    Parameters
    ----------
    cols : number of lanes

    Members
    -------
    a, b : in, signed 18 bits; a2 : in, signed 16; c : in, signed 17; registers, as are all outputs
    norm, add, shift1, shift2 : in, controls
    product, y, saturated : out
    """

    PRODUCT_LATENCY = 1
    LATENCY = 10

    def __init__(self, cols: int):
        self.cols = cols
        super().__init__(
            {
                "a": In(data.ArrayLayout(signed(A_BITS), cols)),
                "b": In(data.ArrayLayout(signed(A_BITS), cols)),
                "a2": In(data.ArrayLayout(signed(ops.ACT_BITS), cols)),
                "c": In(data.ArrayLayout(signed(C_BITS), cols)),
                "norm": In(1),
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
        s1_norm = delay(m, self.norm, 1, "norm")
        s1_shift = delay(m, self.shift1, 1, "shift1")
        s3_add = delay(m, self.add, 3, "add")
        s6_shift = delay(m, self.shift2, 6, "shift2")
        for i in range(self.cols):
            m.submodules[f"lane{i}"] = lane = Lane()
            m.d.comb += [
                lane.a.eq(self.a[i]),
                lane.b.eq(self.b[i]),
                lane.a2.eq(self.a2[i]),
                lane.c.eq(self.c[i]),
                lane.s1_norm.eq(s1_norm),
                lane.s1_shift.eq(s1_shift),
                lane.s3_add.eq(s3_add),
                lane.s6_shift.eq(s6_shift),
                self.product[i].eq(lane.product),
                self.y[i].eq(lane.y),
                self.saturated[i].eq(lane.saturated),
            ]
        return m
