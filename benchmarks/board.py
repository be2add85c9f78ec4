#!/usr/bin/env python3
"""How fast a board is to its user: registers, memory, opening, text. Virtual unless one is named.

.venv-pynq4/bin/python benchmarks/board.py [--bitstream FILE --address A] [--json FILE]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median
from typing import Any

from tokenfabric.core.registers import offset

from tokenfabric.commands.options import add_json, print_table, write_json
from tokenfabric.notebook import load, open_board

PROMPT = "One windy day, Lily"
CALLS = 500
TIMES = 3
MIB = 1 << 20


def seconds(function: Callable[[], Any], times: int = TIMES) -> float:
    """The median of so many calls."""
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        function()
        found.append(time.perf_counter() - begin)
    return median(found)


def measure(bitfile: Any, address: str | None) -> dict[str, float]:
    """Microseconds, MB/s, seconds and tokens/s by name."""
    found = {"open, s": seconds(lambda: open_board(bitfile, address).close())}
    with open_board(bitfile, address) as board:
        import pynq

        overlay = lambda: pynq.Overlay(str(bitfile), device=board.ip.device)  # noqa: E731
        found["Overlay(), s"] = seconds(overlay)
        at = offset("WATCHDOG")
        found["register read, us"] = 1e6 * seconds(lambda: board.ip.read(at), CALLS)
        found["register write, us"] = 1e6 * seconds(lambda: board.ip.write(at, 1), CALLS)
        for mib in (1, 16, 64):
            with pynq.allocate((mib * MIB,), "u1", target=board.ip.device) as buffer:
                for name, move in (("flush", buffer.flush), ("invalidate", buffer.invalidate)):
                    found[f"{name} {mib} MiB, MB/s"] = mib * MIB / 1e6 / seconds(move)
        begin = time.perf_counter()
        llm = load(on=board)
        found["load the model, s"] = time.perf_counter() - begin
        generation = llm.generate(PROMPT, max_tokens=128)
        for _ in generation:
            pass
        found["tokens/s"] = generation.stats.tokens_per_second
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--bitstream", metavar="FILE", help="of a board; its .hwh lies beside it")
    parser.add_argument("--address", metavar="A", help="of a remote board")
    add_json(parser)
    args = parser.parse_args()
    from tokenfabric.sim.board import virtual_board

    virtual = args.bitstream is None
    with virtual_board("kv260", preset="tiny") if virtual else nullcontext() as started:
        bitfile = started.bitfile if virtual else args.bitstream
        found = measure(bitfile, started.address if virtual else args.address)
    print_table([(name, f"{value:,.4g}", "") for name, value in found.items()], args.json)
    write_json(args.json, {"virtual": virtual, "measured": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
