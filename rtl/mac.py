"""The multiplier: the only place in the RTL where one is made."""

from __future__ import annotations

from amaranth.hdl import Value

__all__ = ["multiply"]


def multiply(a: Value, b: Value) -> Value:
    """``a * b``, combinational; put a register before and after it so that a DSP absorbs both.

    Widths are limited to what one DSP48E1 multiplies: 25 x 18 signed (an unsigned operand counts
    one bit more).
    """
    sizes = sorted(len(v) + (0 if v.shape().signed else 1) for v in (a, b))
    if sizes[0] > 18 or sizes[1] > 25:
        raise ValueError(f"{sizes[1]} x {sizes[0]} bits do not fit one 25 x 18 multiplier")
    return a * b
