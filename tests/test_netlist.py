"""ECP5 cells, as ecp5_cells.v models them, against the RTL that yosys makes them of."""

from __future__ import annotations

import re

import pytest
from amaranth.hdl import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from rigs.cocotb_runner import run_cocotb
from rigs.netlist import function, netlist_verilog
from tokenfabric.flow.nextpnr import absorb_registers
from tokenfabric.flow.synth import netlist
from tokenfabric.flow.verilog import to_verilog
from tokenfabric.rtl.mac import multiply
from tokenfabric.rtl.memory import Ram

pytestmark = [pytest.mark.verilator, pytest.mark.slow]

BENCH = """
module top(input clk, rst, output reg [31:0] compared, moved, wrong);
  reg [31:0] count;
  wire [{last}:0] differs, moves;
  genvar lane;
  generate for (lane = 0; lane <= {last}; lane = lane + 1) begin
    reg [{in_bits}:0] in;
    wire [{out_bits}:0] rtl, gates;
    reg [{out_bits}:0] past;
    {names}
    rtl its_rtl(.clk(clk), .rst(rst), {rtl});
    gates its_gates(.clk(clk), .rst(rst), {gates});
    always @(posedge clk) begin
      in <= {stimulus};
      past <= rtl;
    end
    assign differs[lane] = rtl != gates;
    assign moves[lane] = rtl != past;
  end endgenerate
  always @(posedge clk)
    if (rst) begin
      count <= 0; compared <= 0; moved <= 0; wrong <= 0;
    end else begin
      count <= count + 1; compared <= compared + 1;
      if (|moves) moved <= moved + 1;
      if (|differs) wrong <= wrong + 1;
    end
endmodule
"""


def _bench(module, lanes, stimulus):
    """Both designs ``lanes`` times, with equal inputs: ``stimulus`` by ``count``, ``lane``."""
    wires, pins = {"input": [], "output": []}, {"rtl": [], "gates": []}
    at = {"input": 0, "output": 0}
    ports = {n: port for n, port in module["ports"].items() if n not in ("clk", "rst")}
    for name, port in ports.items():
        way, width = port["direction"], len(port["bits"])
        part = f"[{at[way]} +: {width}]"
        at[way] += width
        if way == "input":
            wires[way].append(f"wire [{width - 1}:0] {name} = in{part};")
        for side, found in pins.items():
            found.append(f".{name}({name if way == 'input' else side + part})")
    values = [stimulus[name] for name, port in ports.items() if port["direction"] == "input"]
    return BENCH.format(
        last=lanes - 1, in_bits=at["input"] - 1, out_bits=at["output"] - 1,
        stimulus="{" + ", ".join(reversed(values)) + "}", names=" ".join(wires["input"]),
        **{side: ", ".join(found) for side, found in pins.items()},
    )  # fmt: skip


def _check(unit, *, cycles, kind, lanes=1, stimulus):
    text = to_verilog(unit, "rtl")
    found, _ = netlist(re.sub(r"\bmodule rtl\b", "module top", text), "ecp5")
    module = found["modules"]["top"]
    absorb_registers(module)
    kinds = [cell["type"] for cell in module["cells"].values()]
    assert kind in kinds
    whole = _bench(module, lanes, stimulus) + text + netlist_verilog(module, "gates")
    run_cocotb(whole, "top", "cocotb_netlist", env={"CYCLES": str(cycles)})
    return module


class _Product(wiring.Component):
    """As in the array: a register behind the multiplier, which it moves into."""

    def __init__(self):
        super().__init__(
            {"en": In(1), "a": In(signed(16)), "w": In(signed(8)), "p": Out(signed(24))}
        )

    def elaborate(self, platform):
        m = Module()
        product = Signal(signed(24), reset_less=True)
        with m.If(self.en):
            m.d.sync += product.eq(multiply(self.a, self.w))
        m.d.comb += self.p.eq(product)
        return m


def test_every_product_of_an_activation_and_a_weight():
    """Each once, then again with the register held now and then."""
    stimulus = {"en": "!count[16] || count[2]", "a": "count[15:0]", "w": "8'(lane)"}
    module = _check(_Product(), cycles=1 << 17, kind="MULT18X18D", lanes=256, stimulus=stimulus)
    assert "TRELLIS_FF" not in {cell["type"] for cell in module["cells"].values()}


def _random(width):
    words = -(-width // 32)
    return f"{width}'({{{', '.join(['$urandom'] * words)}}})"


# One for each width of a DP16KD: 16384 x 1, 8192 x 2, 4096 x 4, 2048 x 9, 1024 x 18, 512 x 36; and
# ports of different widths.
RAMS = {
    "x1": ((16384, 1), {}),
    "x2": ((8192, 2), {}),
    "x4": ((4096, 4), {}),
    "x9": ((2048, 9), {}),
    "x18": ((1024, 18), {}),
    "x36": ((512, 36), {}),
    "wide read": ((1024, 36), {"read_units": 2}),
    "wide write": ((1024, 36), {"write_units": 2}),
}


@pytest.mark.parametrize("name", RAMS)
def test_memories(name):
    """Few addresses for a while, so that reads and writes often meet, then all."""
    arguments, options = RAMS[name]
    unit = Ram(*arguments, **options)
    bits = len(unit.r.addr)
    address = f"{_random(bits)} & (count[14] ? {{{bits}{{1'b1}}}} : {bits}'d7)"
    stimulus = {
        "r_en": _random(1), "r_addr": address,
        "w_en": _random(1), "w_addr": address, "w_data": _random(len(unit.w.data)),
    }  # fmt: skip
    _check(unit, cycles=1 << 16, kind="DP16KD", stimulus=stimulus)


class _Registers(wiring.Component):
    """With and without enable and reset, at first 0 and 1; some share both, some one of them."""

    def __init__(self):
        super().__init__({"en": In(2), "clear": In(2), "d": In(8), "q": Out(64)})

    def elaborate(self, platform):
        m = Module()
        for number in range(8):
            init = 0x5A if number & 1 else 0
            register = Signal(8, init=init, reset_less=bool(number & 2), name=f"r{number}")
            with m.If(self.en[number & 1] | (number < 4)):
                m.d.sync += register.eq(self.d + number)
            with m.If(self.clear[number >> 1 & 1] & (number >= 2)):
                m.d.sync += register.eq(init)
            m.d.comb += self.q.word_select(number, 8).eq(register)
        return m


def test_registers():
    stimulus = {"en": _random(2), "clear": f"{_random(2)} & {_random(2)}", "d": _random(8)}
    module = _check(_Registers(), cycles=1 << 12, kind="TRELLIS_FF", stimulus=stimulus)
    text = netlist_verilog(module, "gates").partition("endmodule")[0]
    assert "TRELLIS_FF" not in text and text.count("always") < 8 * 8  # all of them in vectors


def _value(text, inputs):
    """What an expression of ``function`` comes to."""
    if text.startswith("~"):
        return 1 - _value(text[1:], inputs)
    if not text.startswith("("):
        return inputs[text] if text in inputs else int(text.removeprefix("1'b"))
    depth, parts, start = 0, [], 1
    for at, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if (depth == 1 and char in "?:&|^") or depth == 0:
            parts += [text[start:at].strip(), char]
            start = at + 1
    values = [_value(part, inputs) for part in parts[::2]]
    match parts[1]:
        case "?":
            return values[1] if values[0] else values[2]
        case "&":
            return values[0] & values[1]
        case "|":
            return values[0] | values[1]
        case _:
            return values[0] ^ values[1]


def test_every_lut():
    inputs = [dict(zip("ABCD", map(int, f"{i:04b}"[::-1]))) for i in range(16)]
    for table in range(1 << 16):
        text = function(table, list("ABCD"))
        assert sum(_value(text, values) << i for i, values in enumerate(inputs)) == table, text
