"""Find the accelerator that runs a model fastest on a board, before you own one."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenfabric.commands.options import (
    MAX_COUNT,
    add_json,
    check_output,
    check_picture,
    integer,
    number,
    percent,
    write_json,
)
from tokenfabric.core.errors import UserError
from tokenfabric.progress import Progress

if TYPE_CHECKING:
    from tokenfabric.compiler.explore import Candidate
    from tokenfabric.core.boards import BoardSpec
    from tokenfabric.core.shape import ModelShape

SHOWN = 8  # rows of the table
RESOURCES = {"lut": "LUT", "ff": "FF", "dsp": "DSP", "bram36": "BRAM", "uram": "URAM"}
FIGURES = (".png", ".svg", ".pdf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--board", metavar="B", required=True, help="pynq-z2, kv260 or zcu104")
    add("--shape", metavar="NAME", required=True, help="stories15m, ... or a config.json")
    add(
        "--context",
        type=integer(1, MAX_COUNT),
        default=64,
        metavar="T",
        help="positions in the KV cache of a decode step (default: 64)",
    )
    add(
        "--rows",
        type=integer(1, MAX_COUNT),
        metavar="M",
        help="rank by the speed of a prefill of M tokens (default: by that of decoding)",
    )
    add(
        "--verify",
        type=integer(0, 64),
        default=0,
        metavar="K",
        help="simulate the best K, too: minutes each, the first time (default: 0)",
    )
    add("--save", metavar="FILE", help="write the best one as a preset, for --preset FILE")
    add("--plot", metavar="FILE", help="draw it: .png, .svg or .pdf (needs matplotlib)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from tokenfabric.compiler.explore import explore, front, rate
    from tokenfabric.core.boards import board
    from tokenfabric.core.shape import shape_from
    from tokenfabric.sim.devices import check_device

    spec, shape = board(args.board), shape_from(args.shape)
    check_output(args.json)
    check_output(args.save)
    if args.save is not None and Path(args.save).suffix.lower() != ".json":
        raise UserError(f"--save {args.save}: the name must end in .json")
    check_picture("--plot", args.plot, FIGURES)
    if args.verify:
        check_device("verilator")
    with Progress() as progress:
        found = explore(spec, shape, args.context, args.rows, progress)
        best = front(found)
        try:
            preset = rate(spec, spec.config, shape, args.context, args.rows)
        except UserError:  # the model does not fit it
            preset = None
        measured = _simulate(found[: args.verify], shape, args, progress)
    _print(args, spec, found, best, preset, measured)
    if args.save is not None:
        from tokenfabric.core.config import write_preset

        write_preset(found[0].cfg.replace(name=Path(args.save).stem), args.save)
    if args.plot is not None:
        from tokenfabric.commands.explore_plot import draw

        draw(args.plot, _title(args, spec), spec, shape, found, best, preset)
    result = {
        "board": spec.name,
        "shape": args.shape,
        "context": args.context,
        "rows": args.rows,
        "tried": len(found),
        "front": [_described(c) for c in best],
        "preset": None if preset is None else _described(preset),
        "simulated": measured,
    }
    write_json(args.json, result)
    return 0


def _described(candidate: Candidate) -> dict[str, Any]:
    return {**asdict(candidate), "size": candidate.size}


def _simulate(
    candidates: list[Candidate], shape: ModelShape, args: argparse.Namespace, progress: Progress
) -> list[dict[str, Any]]:
    """The same figures, of the simulated hardware."""
    if not candidates:
        return []
    from tokenfabric.sim.measure import measure

    wanted = {"context": args.context, "rows": args.rows, "progress": progress}
    return [measure(candidate.cfg, shape, **wanted) for candidate in candidates]


def _title(args: argparse.Namespace, spec: BoardSpec) -> str:
    work = f"decode at context {args.context}"
    if args.rows is not None:
        work = f"prefill of {args.rows} tokens"
    return f"{args.shape} on {spec.title}, {work}"


def _print(
    args: argparse.Namespace,
    spec: BoardSpec,
    found: list[Candidate],
    best: list[Candidate],
    preset: Candidate | None,
    measured: list[dict[str, Any]],
) -> None:
    from tokenfabric.compiler.area import COMPARED
    from tokenfabric.compiler.area import ERROR as AREA_ERROR
    from tokenfabric.compiler.timing import ERROR

    # What was simulated is shown even if it is not on the front.
    shown = [*best[:SHOWN], *(c for c in found[: len(measured)] if c not in best[:SHOWN])]
    simulated = {id(c): m for c, m in zip(found, measured)}
    resources = [name for name in RESOURCES if name in found[0].shares]
    head = ["", "array", "ports", "rows", "FIFO", "KV", *(RESOURCES[n] for n in resources)]
    lines = [[*head, "tokens/s", "of DRAM", *(["simulated"] if measured else [])]]
    for place, c in enumerate([*shown, *([] if preset is None else [preset])], 1):
        cfg = c.cfg
        name = cfg.name if c is preset else str(place)
        line = [name, f"{cfg.rows}x{cfg.cols}", str(cfg.ports), str(cfg.max_rows)]
        line += [f"{cfg.weight_fifo_beats * cfg.word_bytes // 1024} KB"]
        line += [f"{cfg.kv_chunks * cfg.cols / 1024:g} KB"]
        line += [f"{100 * c.shares[n]:.0f} %" for n in resources]
        line += [number(c.speed, 1), percent(c.decode["bandwidth_fraction"])]
        if id(c) in simulated:
            line.append(number(simulated[id(c)]["tokens_per_second"], 1))
        lines.append(line)
    out = sys.stderr if args.json == "-" else sys.stdout
    print(f"{_title(args, spec)}: {len(found)} accelerators fit at {spec.config.clock_mhz:g} MHz",
          file=out)  # fmt: skip
    widths = [max(len(row[i]) for row in lines if i < len(row)) for i in range(len(lines[0]))]
    for row in lines:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]
        print("  ".join(cells).rstrip(), file=out)
    if args.plot is None:
        print("\n" + "\n".join(_scatter(found, best, preset)), file=out)
    time = (found[0].prefill or found[0].decode)["time"]
    parts = ", ".join(f"{name} {percent(share)}" for name, share in time.items() if share > 0.001)
    print(f"\nWhat takes the time of the best: {parts}.", file=out)
    area = f"within {AREA_ERROR:.0%} before place and route"
    if spec.fpga not in COMPARED:
        area = "as on a 7-series part, compared with no synthesis of this one"
    print(f"Computed, not simulated: cycles within {ERROR:.0%} where compared; resources {area}.",
          file=out)  # fmt: skip


def _scatter(found: list[Candidate], best: list[Candidate], preset: Candidate | None) -> list[str]:
    """Speed over size in characters."""
    wide, high = 64, 14
    every = [*found, *([] if preset is None else [preset])]
    top = max(c.speed for c in every) * 1.05
    right = max(c.size for c in every) * 1.05
    grid = [[" "] * (wide + 1) for _ in range(high + 1)]
    marks = [(c, ".") for c in reversed(found)] + [(c, "o") for c in reversed(best)]
    marks += [] if preset is None else [(preset, "P")]
    marks.append((found[0], "1"))
    for c, mark in marks:
        grid[high - round(c.speed / top * high)][round(c.size / right * wide)] = mark
    label = len(number(top))
    lines = ["tokens/s over the part of the board taken; 1: the best, o: smaller, P: the preset"]
    for row, cells in enumerate(grid):
        value = number(top * (high - row) / high) if row % 7 == 0 else ""
        lines.append(f"{value:>{label}} |{''.join(cells)}".rstrip())
    lines.append(" " * label + " +" + "-" * (wide + 1))
    lines.append(" " * label + f"  0 %{percent(right):>{wide - 3}}")
    return lines
