"""Delays: the one way in which a value waits for another to be computed."""

from __future__ import annotations

from amaranth.hdl import Module, Signal

__all__ = ["delay", "delays"]

SHIFT_STAGES = 3  # of which yosys makes a shift register


def delays(m: Module, value, count: int, *, name: str, reset_less: bool = True) -> list:
    """``value`` now, one cycle later, ... ``count`` cycles later.

    Give control bits ``reset_less=False``. Data are not gated: a chain without reset and enable
    becomes shift-register LUTs. Their output is slow (1.5 ns on a 7-series), so the last of
    SHIFT_STAGES or more has a reset, which makes it a register.
    """
    stages = [value]
    for stage in range(1, count + 1):
        shift = reset_less and not (stage == count >= SHIFT_STAGES)
        later = Signal.like(value, name=f"{name}_{stage}", reset_less=shift)
        m.d.sync += later.eq(stages[-1])
        stages.append(later)
    return stages


def delay(m: Module, value, count: int, name: str, *, reset_less: bool = True):
    """``value``, ``count`` cycles later: the last of :func:`delays`."""
    return delays(m, value, count, name=name, reset_less=reset_less)[-1]
