"""Gate equivalents of units."""

from __future__ import annotations

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.flow.gates import GATES, gate_equivalents
from tokenfabric.rtl.memory import Ram


class _Xor(wiring.Component):
    """Eight XORs, and a register behind them."""

    def __init__(self):
        super().__init__({"a": In(8), "b": In(8), "y": Out(8)})

    def elaborate(self, platform):
        m = Module()
        register = Signal(8, reset_less=True)
        m.d.sync += register.eq(self.a ^ self.b)
        m.d.comb += self.y.eq(register)
        return m


class _Two(wiring.Component):
    """A unit of two, one with a memory in front."""

    def __init__(self):
        super().__init__({"a": In(8), "at": In(5), "y": Out(8), "z": Out(8)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.first = first = _Xor()
        m.submodules.second = second = _Xor()
        m.submodules.ram = ram = Ram(32, 8)
        m.d.comb += [
            ram.w.en.eq(1), ram.w.addr.eq(self.at), ram.w.data.eq(self.a),
            ram.r.en.eq(1), ram.r.addr.eq(self.at),
            first.a.eq(self.a), first.b.eq(self.at), self.y.eq(first.y),
            second.a.eq(self.a), second.b.eq(ram.r.data), self.z.eq(second.y),
        ]  # fmt: skip
        return m


@pytest.mark.slow
def test_gates_are_counted_in_their_unit_and_in_the_units_around_it():
    result = gate_equivalents(_Two())
    units = result["units"]
    of_one = 8 * (GATES["$_XOR_"] + GATES["$_DFF_P_"])
    assert units["top.second"] == {
        "gates": round(of_one), "flip_flops": 8, "macros": 0, "memory_bits": 0
    }  # fmt: skip
    assert units["top"]["flip_flops"] == 16 and units["top"]["memory_bits"] == 256
    assert units["top"]["gates"] == pytest.approx(2 * of_one, rel=0.2)  # 3 bits of b are constant
    assert units["top.ram"]["macros"] == 1
    assert result["macros"] == [{"words": 32, "bits": 8, "count": 1}]
