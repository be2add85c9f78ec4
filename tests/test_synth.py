"""Counting a netlist and finding its longest paths."""

from __future__ import annotations

import pytest
from tokenfabric.rtl.synth import PATHS, TARGETS, analyze, synthesize

XC7 = TARGETS["xc7"]


def _cell(kind: str, inputs: list, output: int) -> dict:
    return {
        "type": kind,
        "port_directions": {"I": "input", "C": "input", "O": "output"},
        "connections": {"I": inputs, "C": [1], "O": [output]},
    }


def _carry(select: list, output: list[int]) -> dict:
    pins = {"CI": ["0"], "DI": ["0"] * 4, "S": select, "O": output, "CO": ["x"] * 4}
    directions = {pin: "output" if pin in ("O", "CO") else "input" for pin in pins}
    return {"type": "CARRY4", "port_directions": directions, "connections": pins}


def _module(cells: dict, names: dict[str, list[int]], outputs: list[int] = ()) -> dict:
    ports = {"y": {"direction": "output", "bits": list(outputs)}} if outputs else {}
    nets = {name: {"hide_name": 0, "bits": bits} for name, bits in names.items()}
    return {"cells": cells, "ports": ports, "netnames": nets}


def test_luts_count_as_levels_and_carries_do_not():
    """a -> LUT -> CARRY4 -> LUT -> MUXF7 -> b, beside a path of one LUT; registers at the ends."""
    cells = {
        "ra": _cell("FDRE", [99], 2),
        "l1": _cell("LUT6", [2], 3),
        "c1": _carry([3, "0", "0", "0"], [4, 60, 61, 62]),
        "l2": _cell("LUT2", [4, 2], 5),
        "m1": _cell("MUXF7", [5, 3], 6),
        "rb": _cell("FDRE", [6], 7),
        "l3": _cell("LUT1", [2], 8),
        "rc": _cell("FDRE", [8], 9),
    }
    names = {"a": [2], "b": [7], "c": [9], "sum": [4]}
    result = analyze(_module(cells, names), XC7)
    assert (result["lut"], result["ff"], result["lut_levels"]) == (3, 3, 2)
    first, second = result["paths"][:2]
    assert (first["start"], first["end"], first["lut_levels"]) == ("a (FDRE)", "b (FDRE)", 2)
    assert (second["end"], second["lut_levels"]) == ("c (FDRE)", 1)
    assert "sum" in first["via"]
    assert result["fmax_mhz"] is None


def test_memories_and_multipliers_are_counted_in_their_units():
    kinds = ["RAMB36E1", "RAMB18E1", "RAMB18E1", "RAMB18E1", "DSP48E1", "RAM32M", "SRL16E", "INV"]
    cells = {f"x{i}": _cell(kind, [i + 10], i + 50) for i, kind in enumerate(kinds)}
    result = analyze(_module(cells, {}), XC7)
    assert (result["bram36"], result["dsp"], result["lut"], result["lutram"]) == (2.5, 1, 6, 5)


def test_a_lut_memory_is_read_within_the_cycle_and_written_at_its_end():
    """The read address reaches the output; the data written, behind more LUTs, do not."""
    pins = {"ADDRA": [2], "DIA": [21], "WE": [2], "WCLK": [1], "DOA": [3]}
    ram = {
        "type": "RAM32M",
        "port_directions": {pin: "output" if pin == "DOA" else "input" for pin in pins},
        "connections": pins,
    }
    cells = {
        "ra": _cell("FDRE", [99], 2),
        "l1": _cell("LUT6", [2], 20),
        "l2": _cell("LUT6", [20], 21),
        "ram": ram,
        "l3": _cell("LUT6", [3], 4),
        "rb": _cell("FDRE", [4], 5),
    }
    paths = analyze(_module(cells, {"a": [2], "b": [5], "q": [3]}), XC7)["paths"]
    found = {path["end"]: path["lut_levels"] for path in paths}
    assert found["b (FDRE)"] == 2 and found["q (RAM32M)"] == 2


def test_a_carry_chain_may_feed_its_own_upper_bits():
    chain = _carry([2, 40, "0", "0"], [3, 4, 5, 6])
    cells = {
        "ra": _cell("FDRE", [99], 2),
        "c1": chain,
        "l1": _cell("LUT2", [3], 40),
        "rb": _cell("FDRE", [4], 7),
    }
    result = analyze(_module(cells, {"a": [2], "b": [7]}), XC7)
    assert result["lut_levels"] == 1 and result["paths"][0]["start"].startswith("a")


def test_the_worst_ends_are_reported_once_per_signal():
    cells, bit = {}, 100
    for number in range(2 * PATHS):
        cells[f"l{number}"] = _cell("LUT6", [2], bit)
        cells[f"r{number}"] = _cell("FDRE", [bit], bit + 1)
        bit += 2
    wide = [101 + 2 * i for i in range(PATHS)]
    names = {"word": wide, **{f"s{i}": [101 + 2 * i] for i in range(PATHS, 2 * PATHS)}}
    ends = [path["end"] for path in analyze(_module(cells, names), XC7)["paths"]]
    assert len(ends) == PATHS and sum(end.startswith("word[") for end in ends) == 1


def test_a_combinational_loop_does_not_hang():
    cells = {
        "l1": _cell("LUT2", [3, 9], 2),
        "l2": _cell("LUT2", [2], 3),
        "r": _cell("FDRE", [3], 4),
    }
    assert analyze(_module(cells, {"r": [4]}), XC7)["lut_levels"] >= 1


def test_output_ports_are_ends():
    cells = {"l1": _cell("LUT2", [2], 3)}
    result = analyze(_module(cells, {"a": [2], "y": [3]}, [3]), XC7)
    assert result["paths"][0]["end"] == "y" and result["lut_levels"] == 1


VERILOG = """
module top(input clk, input [7:0] a, b, input [8:0] w, r, output reg [15:0] p, output reg [7:0] q);
  reg [7:0] x, y, memory [0:511];
  always @(posedge clk) begin
    x <= a; y <= b; p <= x * y; memory[w] <= x; q <= memory[r];
  end
endmodule
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["generic", "ecp5"])
def test_yosys_is_understood(target):
    result = synthesize(VERILOG, target)
    assert result["dsp"] == 1 and result["bram36"] in (0.5, 1)
    assert 16 <= result["ff"] <= 60 and result["lut_levels"] >= 0
