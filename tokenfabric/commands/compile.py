"""Compile a model for an accelerator: what its memory must hold."""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenfabric.commands.inputs import kind_of, load_image
from tokenfabric.commands.options import MAX_COUNT, add_preset, check_output, integer
from tokenfabric.core.errors import UserError
from tokenfabric.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="M", help="model file, or a checkpoint to quantize on the fly")
    add_preset(parser)
    add("-o", "--output", metavar="IMAGE", required=True, help="the image file to write")
    add("--tokenizer", metavar="FILE", help="if M is a checkpoint that does not bring its own")
    add("--context", type=integer(1, MAX_COUNT), metavar="T", help="positions to make room for")
    add("--slots", type=integer(1, 256), default=1, metavar="N", help="texts at a time")


def run(args: argparse.Namespace) -> int:
    check_output(args.output)
    path = Path(args.model)
    if kind_of(path) == "image":
        raise UserError(f"{path}: is an image already; give a model file or a checkpoint")
    with Progress() as progress:
        cfg, image = load_image(
            path, args.tokenizer, args.preset, args.context, progress, args.slots
        )
        image.write(args.output)
    print(
        f"{args.output}: {image.map.program_words} instructions and {image.payload.size:,} bytes "
        f"for {cfg.name} ({cfg.fingerprint}), {image.rows} rows a step, "
        f"{image.slots} x {image.context} positions, {sum(image.memory()):,} bytes of memory"
    )
    return 0
