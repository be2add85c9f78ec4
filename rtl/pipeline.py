"""Delays: the one way in which a value waits for another to be computed."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, Value

__all__ = ["delay", "delays", "register"]

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


def register(m: Module, output):
    """A register without reset for data, which ``output`` shows. Returns it.

    An output that is itself assigned in ``sync`` is a register with a reset, which counts among
    what the reset has to drive.
    """
    held = Signal(output.shape(), name=f"{Value.cast(output).name}_held", reset_less=True)
    m.d.comb += output.eq(held)
    return held


def delay(m: Module, value, count: int, name: str, *, reset_less: bool = True):
    """``value``, ``count`` cycles later: the last of :func:`delays`."""
    return delays(m, value, count, name=name, reset_less=reset_less)[-1]
