"""Measure the speed of an accelerator on the simulated hardware."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tokenfabric.commands.options import (
    MAX_COUNT,
    add_json,
    add_preset,
    check_output,
    check_picture,
    integer,
    number,
    percent,
    print_table,
    write_json,
)
from tokenfabric.core.errors import UserError
from tokenfabric.progress import Progress

if TYPE_CHECKING:
    from tokenfabric.core.image import Image
    from tokenfabric.sim.devices import VerilatedDevice

WEIGHTS = ("w8",)
PICTURES = (".png", ".svg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--shape", metavar="NAME", required=True, help="stories15m, ... or a config.json")
    add_preset(parser)
    add("--weights", default="w8", metavar="W", help="format of the weights (default: w8)")
    add(
        "--context",
        type=integer(1, MAX_COUNT),
        default=64,
        metavar="T",
        help="positions in the KV cache of a decode step (default: 64)",
    )
    add("--rows", type=integer(1, MAX_COUNT), metavar="M", help="measure a prefill of M tokens")
    add("--account", action="store_true", help="say where every cycle of the DRAM goes")
    add("--timeline", metavar="FILE", help="draw a step to a .png or .svg")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from tokenfabric.core.config import preset
    from tokenfabric.core.shape import shape_from
    from tokenfabric.sim.devices import check_device

    check_output(args.json)
    check_picture("--timeline", args.timeline, PICTURES)
    if args.weights not in WEIGHTS:
        raise UserError(f"--weights {args.weights}: not supported yet; use {', '.join(WEIGHTS)}")
    cfg, shape = preset(args.preset), shape_from(args.shape)
    check_device("verilator")
    with Progress() as progress:
        result = {
            "shape": args.shape,
            "preset": cfg.name,
            "weights": args.weights,
            **_measure(args, cfg, shape, progress),
            "clock_mhz": cfg.clock_mhz,
            "ports": cfg.ports,
            "macs": cfg.macs,
        }
    print_table(_table(result), args.json)
    write_json(args.json, result)
    return 0


def _measure(args: argparse.Namespace, cfg: Any, shape: Any, progress: Progress) -> dict[str, Any]:
    from hashlib import sha256

    from tokenfabric.flow.verilog import cached_verilog
    from tokenfabric.sim.measure import measure_on, simulated

    device, image = simulated(cfg, shape, progress)
    watched = args.account or args.timeline is not None
    device.record(watched)
    progress("simulating")
    result = measure_on(device, cfg, image, context=args.context, rows=args.rows)
    if watched:
        progress("accounting")
        result.update(_explain(args, device, image, result))
    digest = sha256(cached_verilog(cfg, progress).encode()).hexdigest()
    return {**result, "fingerprint": device.fingerprint, "verilog_sha256": digest}


def _explain(
    args: argparse.Namespace, device: VerilatedDevice, image: Image, result: dict[str, Any]
) -> dict[str, Any]:
    """The account, if wanted, after drawing a step, if wanted."""
    from tokenfabric.sim.account import account, traces

    spans = result["spans"]
    explained = traces(device.recording(), image, device.bases, spans)
    if args.timeline is not None:
        from tokenfabric.sim.timeline import draw

        job, *span = spans[len(spans) // 2]  # no first and no last one: they are special
        what = f"a step of {args.shape} on {args.preset}"
        draw(args.timeline, explained[job], (span[0], span[1]), what)
    return {"account": account(explained, spans)} if args.account else {}


def _account_table(account: dict[str, Any]) -> list[tuple[str, str, str]]:
    from tokenfabric.sim.account import LOST

    def row(name: str, cycles: float, remark: str = "") -> tuple[str, str, str]:
        return f"  {name}", number(cycles, 1), f"{percent(cycles / account['cycles']):>7}  {remark}"

    rows = [("the DRAM's data bus", number(account["cycles"], 1), "cycles per step")]
    rows += [row(name, cycles) for name, cycles in account["data"].items() if cycles]
    for cause, entry in account["lost"].items():
        if entry["cycles"]:
            rows.append(row(cause, entry["cycles"], LOST[cause]))
        rows += [row(f"  {who}", cycles) for who, cycles in entry.get("waiting_for", {}).items()]
    return rows


def _table(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    what = f"decode, context {result['context']}" if "context" in result else "prefill"
    steps = f"{result['shape']} {result['weights']} on {result['preset']}, {what}"
    rows = [
        ("cycles per step", number(result["cycles_per_step"]), steps),
        ("bytes per step", number(result["bytes_per_step"]), "at the ports"),
        ("useful bytes", number(result["useful_bytes_per_step"]), "per step"),
        ("share of the DRAM limit", percent(result["bandwidth_fraction"]), ""),
        ("share of the MACs", percent(result["mac_fraction"]), f"of {result['macs']}"),
        ("tokens/s", number(result["tokens_per_second"], 1), f"at {result['clock_mhz']:g} MHz"),
    ]
    if "classifier_cycles" in result:
        rows.append(("classifier cycles", number(result["classifier_cycles"]), "once"))
    counters = result["counters"]
    for name, value in counters.items():
        if name != "cycles" and not name.endswith("_beats"):
            share = percent(value / counters["cycles"])
            rows.append(("  " + name.replace("_", " "), share, "of all cycles"))
    return rows + (_account_table(result["account"]) if "account" in result else [])
