"""Reciprocals and inverse square roots: find the leading one, then an interpolated table."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core import ops
from tokenfabric.rtl.mac import multiply
from tokenfabric.rtl.memory import Rom

__all__ = ["Normalize", "Recip", "Recip127", "Rsqrt"]


class Normalize(wiring.Component):
    """Position ``e`` of the leading one of ``x`` >= 1, and ``frac``: the bits below it, truncated.

    One value per cycle, ``frac_valid`` LATENCY cycles after ``x_valid``. Shifts left by halves, two
    halvings per stage. ``x`` = 0 is not allowed (any ``frac`` and ``e`` come out).

    Parameters
    ----------
    bits : width of ``x``, 2..64
    frac_bits : width of ``frac``; zeros fill the low bits where x has fewer
    """

    LATENCY = 3

    def __init__(self, bits: int, frac_bits: int):
        self.bits, self.frac_bits = bits, frac_bits
        super().__init__(
            {
                "x_valid": In(1),
                "x": In(bits),
                "frac_valid": Out(1),
                "frac": Out(frac_bits),
                "e": Out((bits - 1).bit_length()),
            }
        )

    def elaborate(self, platform):
        m = Module()
        steps = [1 << k for k in reversed(range(len(self.e)))]
        valid, value, zeros = self.x_valid, self.x, Const(0, 0)
        for stage in range(self.LATENCY):
            for step in steps[2 * stage : 2 * stage + 2]:
                empty = Signal(name=f"s{stage}_empty{step}")
                m.d.comb += empty.eq(value[-step:] == 0)
                value = Mux(empty, Cat(Const(0, step), value[:-step]), value)
                zeros = Cat(empty, zeros)  # leading zeros so far, the largest step on top
            s_valid = Signal(name=f"s{stage}_valid")
            s_value = Signal(self.bits, name=f"s{stage}_value", reset_less=True)
            s_zeros = Signal(len(zeros), name=f"s{stage}_zeros", reset_less=True)
            m.d.sync += s_valid.eq(valid)
            with m.If(valid):
                m.d.sync += [s_value.eq(value), s_zeros.eq(zeros)]
            valid, value, zeros = s_valid, s_value, s_zeros
        missing = max(0, self.frac_bits + 1 - self.bits)
        m.d.comb += [
            self.frac_valid.eq(valid),
            self.frac.eq(Cat(Const(0, missing), value)[-1 - self.frac_bits : -1]),
            self.e.eq(self.bits - 1 - zeros),
        ]
        return m


class _Table(wiring.Component):
    """``(base[seg] - (drop[seg] * rem >> rem_bits)) >> cut``; ``e`` comes along, one per cycle.

    Parameters
    ----------
    table : the bases and the drops, as ``ops`` gives them
    rem_bits : width of ``rem``
    e_bits : width of ``e``
    cut : low bits of the interpolated value that are left out
    """

    LATENCY = 3

    def __init__(self, table, rem_bits: int, e_bits: int, cut: int):
        self.base, self.drop = table
        self.cut = cut
        super().__init__(
            {
                "seg_valid": In(1),
                "seg": In((len(self.base) - 1).bit_length()),
                "rem": In(rem_bits),
                "e": In(e_bits),
                "r_valid": Out(1),
                "r": Out(int(self.base.max()).bit_length() - cut),
                "r_e": Out(e_bits),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.base = base = Rom(self.base, len(self.r) + self.cut)
        m.submodules.drop = drop = Rom(self.drop, int(self.drop.max()).bit_length())
        m.d.comb += [base.addr.eq(self.seg), drop.addr.eq(self.seg)]

        s0_valid, s1_valid = Signal(), Signal()
        s0_base = Signal.like(base.data, reset_less=True)
        s0_drop = Signal.like(drop.data, reset_less=True)
        s0_rem = Signal.like(self.rem, reset_less=True)
        s0_e = Signal.like(self.e, reset_less=True)
        s1_base = Signal.like(base.data, reset_less=True)
        s1_product = Signal(len(s0_drop) + len(s0_rem), reset_less=True)
        s1_e = Signal.like(self.e, reset_less=True)
        m.d.sync += [s0_valid.eq(self.seg_valid), s1_valid.eq(s0_valid), self.r_valid.eq(s1_valid)]
        with m.If(self.seg_valid):
            m.d.sync += [
                s0_base.eq(base.data),
                s0_drop.eq(drop.data),
                s0_rem.eq(self.rem),
                s0_e.eq(self.e),
            ]
        with m.If(s0_valid):
            m.d.sync += [
                s1_base.eq(s0_base),
                s1_product.eq(multiply(s0_drop, s0_rem)),
                s1_e.eq(s0_e),
            ]
        with m.If(s1_valid):
            m.d.sync += [
                self.r.eq((s1_base - (s1_product >> len(s0_rem))) >> self.cut),
                self.r_e.eq(s1_e),
            ]
        return m


class _Unit(wiring.Component):
    """``x`` -> Normalize -> table -> ``r, e``: one value per cycle, no back-pressure.

    Members
    -------
    x_valid, x : in, ``bits`` unsigned bits, at least 1
    r_valid, r, e : out, exactly LATENCY cycles later
    """

    LATENCY = Normalize.LATENCY + _Table.LATENCY

    def __init__(self, bits: int, table, seg_bits: int, rem_bits: int, *, cut=0, halve_e=False):
        self.normalize = Normalize(bits, seg_bits + rem_bits)
        self.halve_e = halve_e
        e_bits = len(self.normalize.e)
        self.table = _Table(table, rem_bits, max(1, e_bits - 1) if halve_e else e_bits, cut)
        super().__init__(
            {
                "x_valid": In(1),
                "x": In(bits),
                "r_valid": Out(1),
                "r": Out(len(self.table.r)),
                "e": Out(len(self.table.r_e)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.normalize = normalize = self.normalize
        m.submodules.table = table = self.table
        rem_bits, odd = len(table.rem), normalize.e[:1] if self.halve_e else Const(0, 0)
        m.d.comb += [
            normalize.x_valid.eq(self.x_valid),
            normalize.x.eq(self.x),
            table.seg_valid.eq(normalize.frac_valid),
            table.seg.eq(Cat(normalize.frac[rem_bits:], odd)),
            table.rem.eq(normalize.frac[:rem_bits]),
            table.e.eq(normalize.e >> len(odd)),
            self.r_valid.eq(table.r_valid),
            self.r.eq(table.r),
            self.e.eq(table.r_e),
        ]
        return m


class Recip(_Unit):
    """``ops.recip``: 1/x is about ``r * 2**-16 * 2**-e``."""

    def __init__(self, bits: int, numerator: float = 1.0):
        super().__init__(
            bits,
            ops.recip_table(numerator),
            ops.RECIP_SEG_BITS,
            ops.RECIP_REM_BITS,
            cut=ops.RECIP_ROUND_BITS,
        )


class Recip127(Recip):
    """``ops.recip127``: (127/128)/x is about ``r * 2**-16 * 2**-e``."""

    def __init__(self, bits: int):
        super().__init__(bits, 127 / 128)


class Rsqrt(_Unit):
    """``ops.rsqrt``: 1/sqrt(x) is about ``r * 2**-16 * 2**-e``."""

    def __init__(self, bits: int):
        super().__init__(
            bits, ops.rsqrt_table(), ops.RSQRT_SEG_BITS, ops.RSQRT_REM_BITS, halve_e=True
        )
