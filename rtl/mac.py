"""The multipliers: the only place in the RTL where they are made."""

from __future__ import annotations

from amaranth.hdl import Array, Module, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.ops import ACT_BITS, WEIGHT_BITS
from tokenfabric.rtl.pipeline import register

__all__ = ["PRODUCT_BITS", "FabricMultipliers", "multiply"]

PRODUCT_BITS = ACT_BITS + WEIGHT_BITS


def multiply(a: Value, b: Value) -> Value:
    """``a * b``, combinational; put a register before and after it so that a DSP absorbs both.

    Widths are limited to what one DSP48E1 multiplies: 25 x 18 signed (an unsigned operand counts
    one bit more).
    """
    sizes = sorted(len(v) + (0 if v.shape().signed else 1) for v in (a, b))
    if sizes[0] > 18 or sizes[1] > 25:
        raise ValueError(f"{sizes[1]} x {sizes[0]} bits do not fit one 25 x 18 multiplier")
    return a * b


class FabricMultipliers(wiring.Component):
    """``product[i] = a * w[i]`` in LUTs, LATENCY cycles after ``a``; ``w`` comes a cycle later.

    Two bits of a weight choose one of four multiples of a, which all weights share: one LUT per
    bit. Four of these are added in two steps.

    Members
    -------
    enable : in, one bit per stage; a stage that is not enabled keeps what it has
    a, w : in
    product : out
    """

    LATENCY = 3

    def __init__(self, count: int):
        self.count = count
        super().__init__(
            {
                "enable": In(self.LATENCY),
                "a": In(signed(ACT_BITS)),
                "w": In(data.ArrayLayout(signed(WEIGHT_BITS), count)),
                "product": Out(data.ArrayLayout(signed(PRODUCT_BITS), count)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        a = self.a
        one = Signal(signed(ACT_BITS), reset_less=True)
        three = Signal(signed(ACT_BITS + 2), reset_less=True)
        minus = Signal(signed(ACT_BITS + 1), reset_less=True)
        with m.If(self.enable[0]):
            m.d.sync += [one.eq(a), three.eq(a + (a << 1)), minus.eq(-a)]
        product = register(m, self.product)
        multiples = Array([0, one, one << 1, three])
        signed_multiples = Array([0, one, minus << 1, minus])  # the weight's sign counts -2
        for i in range(self.count):
            w = self.w[i].as_unsigned()
            low, high = (
                Signal(signed(PRODUCT_BITS - 4), name=f"{half}{i}", reset_less=True)
                for half in ("low", "high")
            )
            with m.If(self.enable[1]):
                m.d.sync += [
                    low.eq(multiples[w[0:2]] + (multiples[w[2:4]] << 2)),
                    high.eq(multiples[w[4:6]] + (signed_multiples[w[6:8]] << 2)),
                ]
            with m.If(self.enable[2]):
                m.d.sync += product[i].eq(low + (high << 4))
        return m
