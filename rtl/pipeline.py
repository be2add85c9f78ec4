"""Delays: the one way in which a value waits for another to be computed."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, Value

__all__ = ["delays"]


def delays(m: Module, value, count: int, *, name: str, reset_less: bool = True) -> list[Value]:
    """``value`` now, one cycle later, ... ``count`` cycles later.

    Give control bits ``reset_less=False``. Data are not gated: a chain without reset and enable
    becomes shift-register LUTs.
    """
    stages = [Value.cast(value)]
    for stage in range(1, count + 1):
        later = Signal(stages[0].shape(), name=f"{name}_{stage}", reset_less=reset_less)
        m.d.sync += later.eq(stages[-1])
        stages.append(later)
    return stages
