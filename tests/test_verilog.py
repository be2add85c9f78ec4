# amaranth: UnusedElaboratable=no
"""Verilog text of a component."""

import re

import pytest
from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.flow.verilog import to_verilog


class Adder(wiring.Component):
    def __init__(self):
        port = wiring.Signature({"addr": Out(8), "data": In(8)})
        super().__init__({"m_axi_hp0": Out(port), "total": Out(9)})

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.total.eq(self.total + self.m_axi_hp0.data)
        m.d.comb += self.m_axi_hp0.addr.eq(self.total)
        return m


class Clash(wiring.Component):
    def __init__(self):
        super().__init__({"a_b": Out(1), "a": Out(wiring.Signature({"b": Out(1)}))})


def test_ports_are_named_for_tools():
    text = to_verilog(Adder(), name="adder")
    names = re.search(r"module adder\((.*?)\)", text, re.S)[1]
    assert {n.strip() for n in names.split(",")} == {
        "m_axi_hp0_addr", "m_axi_hp0_data", "total", "clk", "rst",
    }  # fmt: skip
    assert "input [7:0] m_axi_hp0_data" in text and "output [8:0] total" in text


def test_text_repeats_and_has_no_paths():
    text = to_verilog(Adder())
    assert text == to_verilog(Adder())
    assert ".py" not in text and "/tmp" not in text
    assert "always @(posedge clk)" in text


def test_ports_must_not_clash():
    with pytest.raises(ValueError, match="two ports are called a_b"):
        to_verilog(Clash())
