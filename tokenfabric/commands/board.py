"""Run a virtual board: PYNQ talks to it as to a remote one, its fabric is simulated."""

from __future__ import annotations

import argparse
import ipaddress
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tokenfabric.commands.options import (
    add_json,
    check_output,
    check_output_folder,
    integer,
    print_table,
    write_json,
)
from tokenfabric.core.errors import UserError, require
from tokenfabric.progress import Progress

MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("board", metavar="BOARD", help="pynq-z2, kv260, zcu104")
    add("--preset", metavar="P", help="the accelerator in its fabric (default: the board's)")
    add(
        "--listen",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="127.x.y.z[:PORT] or unix:PATH (default: 127.0.0.1, port 7967); for several boards "
        "at once: 127.0.0.2, ...",
    )
    add(
        "--memory",
        type=integer(1, 2048),
        default=256,
        metavar="MIB",
        help="memory for buffers (default: 256)",
    )
    add("--write-design", metavar="DIR", help="where to put the .bit and the .hwh")
    add("--until-eof", action="store_true", help="end with the standard input, too")
    add("--open-to-all", action="store_true", help="allow other addresses than this machine's own")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from tokenfabric.core.boards import board
    from tokenfabric.core.config import preset
    from tokenfabric.sim.board import serve, write_design
    from tokenfabric.sim.devices import check_device

    check_output(args.json)
    check_output_folder(args.write_design)
    spec = board(args.board)
    cfg = preset(args.preset or spec.preset)
    if args.memory * MIB > spec.memory_bytes:
        raise UserError(
            f"--memory {args.memory}: the {spec.title} has {spec.memory_bytes // MIB} MiB in all; "
            "give less"
        )
    dial, address, how = _address(args.listen, args.open_to_all)
    require("pynq", "grpc")
    check_device("verilator")
    with ExitStack() as stack:
        folder = args.write_design or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="tokenfabric-design-")
        )
        model = _model(spec, cfg, args.memory * MIB)
        stack.callback(model.close)
        bitfile = write_design(Path(folder), spec, cfg)
        stack.enter_context(serve(model, address))
        result = {
            "board": spec.name,
            "preset": cfg.name,
            "fingerprint": cfg.fingerprint,
            "address": dial,
            "bitfile": str(bitfile.resolve()),
        }
        print_table(
            [
                ("board", "", f"{spec.title}, virtual"),
                ("accelerator", "", f"{cfg.name}, fingerprint {cfg.fingerprint}"),
                ("memory", "", f"{args.memory} MiB"),
                ("bitstream", "", str(bitfile.resolve())),
                ("listens at", "", address),
                ("to use it", "", how),
            ],
            args.json,
        )
        write_json(args.json, result)
        sys.stdout.flush()
        if args.until_eof:
            sys.stdin.read()
            return 0
        while True:  # until Ctrl-C or SIGTERM
            signal.pause()


def _model(spec: Any, cfg: Any, memory: int) -> Any:
    from tokenfabric.sim.board_model import CMA_BASE, BoardModel
    from tokenfabric.sim.devices import simulated_top

    with Progress() as progress:
        top = simulated_top(cfg, memory, base=CMA_BASE, progress=progress)
    return BoardModel(spec, cfg, top)


def _address(listen: str, open_to_all: bool) -> tuple[str, str, str]:
    """What to dial, what to listen at, how to say so to PYNQ, which appends its port by itself."""
    from tokenfabric.sim.board import PORT

    variable = "export PYNQ_REMOTE_DEVICES="
    if listen.startswith("unix:"):
        path = Path(listen[5:]).resolve()
        return f"unix:{path}", f"unix:{path}:{PORT}", f"{variable}unix:{path}"
    host, _, port = listen.partition(":")
    try:
        loopback = ipaddress.IPv4Address(host).is_loopback
        number = integer(1, 65535)(port or str(PORT))
    except (ValueError, argparse.ArgumentTypeError):
        raise UserError(
            f"--listen {listen}: is neither an IPv4 address, with :PORT or without, nor unix:PATH; "
            "give one of them"
        ) from None
    if not loopback and not open_to_all:
        raise UserError(
            f"--listen {listen}: others could reach it, and it asks nobody who he is; give a "
            "loopback address, or --open-to-all in a network that you trust"
        )
    if number == PORT:
        return host, f"{host}:{number}", variable + host
    return host, f"{host}:{number}", f"RemoteDevice(ip_addr={host!r}, port={number})"
