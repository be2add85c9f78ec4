"""Synthesize an accelerator with yosys: what it takes of an FPGA."""

from __future__ import annotations

import argparse
from typing import Any

from tokenfabric.commands.options import (
    add_json,
    add_preset,
    check_output,
    number,
    print_table,
    write_json,
)
from tokenfabric.errors import UserError
from tokenfabric.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_preset(parser)
    parser.add_argument(
        "--target", default="xc7", metavar="T", help="xc7 (default), ecp5, xcup or generic"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from hashlib import sha256

    from tokenfabric.config import preset
    from tokenfabric.rtl.synth import TARGETS, synthesize
    from tokenfabric.sim.devices import cached_verilog

    check_output(args.json)
    cfg = preset(args.preset)
    if args.target not in TARGETS:
        raise UserError(f"--target {args.target}: no such target; use {', '.join(TARGETS)}")
    with Progress() as progress:
        text = cached_verilog(cfg, progress)
        report = synthesize(text, args.target, progress)
    result = {
        "preset": cfg.name,
        "target": args.target,
        **report,
        "fingerprint": cfg.fingerprint,
        "verilog_sha256": sha256(text.encode()).hexdigest(),
    }
    print_table(_table(result), args.json)
    write_json(args.json, result)
    return 0


def _table(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = [
        ("LUT", number(result["lut"]), f"of which {result['lutram']:,} as memory"),
        ("FF", number(result["ff"]), ""),
        ("DSP", number(result["dsp"]), ""),
        ("BRAM36", number(result["bram36"], 1), ""),
        ("URAM", number(result["uram"]), ""),
        ("LUT levels", number(result["lut_levels"]), "longest path; the worst ends:"),
    ]
    for path in result["paths"]:
        rows.append(("", number(path["lut_levels"]), f"{path['start']} -> {path['end']}"))
    return rows
