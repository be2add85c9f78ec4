"""Counting a netlist and finding its longest paths."""

from __future__ import annotations

import pytest
from tokenfabric.flow.synth import PATHS, TARGETS, analyze, synthesize

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


def _dsp(**registers: int) -> dict:
    parameters = {f"{name}REG": f"{registers.get(name, 0):032b}" for name in "ABMP"}
    return {**_cell("DSP48E1", [10], 50), "parameters": {"USE_MULT": "MULTIPLY", **parameters}}


def test_registers_within_dsps_are_counted():
    cells = {"full": _dsp(A=1, B=2, M=1, P=1), "half": _dsp(A=1, P=1)}
    assert analyze(_module(cells, {}), XC7)["dsp_registers"] == {"A": 2, "B": 1, "M": 1, "P": 2}


def test_shares_are_of_the_part():
    cells = {f"x{i}": _cell("DSP48E1", [i + 10], i + 50) | {"parameters": _dsp()["parameters"]}
             for i in range(11)}  # fmt: skip
    result = analyze(_module(cells, {}), XC7)
    assert (result["part"], result["share"]["dsp"], result["share"]["lut"]) == ("xc7z020", 0.05, 0)


STA = """
Warning: Module 'CARRY8' has no timing arcs!
Latest arrival time in 'top' is 1048:
    1048 rb (FDRE.CE)
           $abc$1$o
     939 l1 (LUT6.I0->O)
           \\a [2]
     303 ra (FDRE.C->Q)
           \\clk
       0   \\clk (<primary input>)
"""


def test_the_slowest_path_is_named_by_signals():
    enabled = _cell("FDRE", [99], 7)
    enabled["connections"]["CE"] = [3]
    flop = _cell("FDRE", [99], 2)
    for cell in (enabled, flop):
        cell["connections"]["Q"] = cell["connections"].pop("O")
        cell["port_directions"] |= {"Q": "output", "CE": "input"}
    cells = {"ra": flop, "l1": _cell("LUT6", [2], 3), "rb": enabled}
    names = {"unit.a[2]": [2], "unit.enable": [3], "unit.b": [7]}
    result = analyze(_module(cells, names), XC7, STA)
    assert result["cell_delay_ns"] == 1.048
    assert result["slowest"] == [
        {"ns": 0.303, "signal": "unit.a[2]", "cell": "FDRE.Q"},
        {"ns": 0.939, "signal": "unit.enable", "cell": "LUT6.O"},
        {"ns": 1.048, "signal": "unit.b", "cell": "FDRE.CE"},
    ]
    assert "CARRY8: all" in result["uncovered"]


def test_a_path_that_ends_without_a_setup_time_has_an_end():
    cells = {"ra": _cell("FDRE", [99], 2), "rb": _cell("FDRE", [2], 7)}
    sta = "Latest arrival time in 'top' is 303:\n     303 (<unknown>)\n           x\n"
    sta += "     303 ra (FDRE.C->O)\n"
    result = analyze(_module(cells, {"a": [2], "b": [7]}), XC7, sta)
    assert [step["cell"] for step in result["slowest"]] == ["FDRE.O", "FDRE.I"]


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
    assert result["cell_delay_ns"] is None


@pytest.mark.slow
def test_yosys_adds_up_the_delays_of_an_xc7():
    """The memory becomes LUTs, that are read in 1.1 ns after the clock; then there is an adder."""
    result = synthesize(VERILOG.replace("memory[r]", "memory[r] + 1"), "xc7")
    assert 1.1 < result["cell_delay_ns"] < 5 and result["dsp_registers"]["A"] == 1
    assert result["slowest"][0]["cell"].startswith("RAM")
    assert result["slowest"][-1]["signal"].startswith("q[")
