"""Quantize a checkpoint to a model file."""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenfabric.commands.inputs import kind_of, load_checkpoint
from tokenfabric.commands.options import check_output, integer
from tokenfabric.core.errors import UserError
from tokenfabric.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="llama2.c .bin or Hugging Face folder")
    add("-o", "--output", metavar="M", required=True, help="the model file to write (.tfm)")
    add("--tokenizer", metavar="FILE", help="default: the one beside the checkpoint")
    add("--recipe", default="w8", metavar="R", help="w8 (default): weights of 8 bits")
    add("--calibration", metavar="TEXT", help="a text per line; default: sampled from the model")
    add("--seed", type=integer(0, 2**32 - 1), default=0, metavar="S", help="of the sampled texts")


def run(args: argparse.Namespace) -> int:
    from tokenfabric.quant.evaluate import read_lines
    from tokenfabric.quant.quantize import check_recipe, quantize_checkpoint

    check_output(args.output)
    check_recipe(args.recipe)
    if args.calibration is not None:
        read_lines(args.calibration)
    path = Path(args.checkpoint)
    if kind_of(path) != "checkpoint":
        raise UserError(f"{path}: is quantized already; give the checkpoint it was made from")
    with Progress() as progress:
        progress(f"reading {path.name}")
        checkpoint, tokenizer = load_checkpoint(path, args.tokenizer)
        model = quantize_checkpoint(
            checkpoint,
            tokenizer,
            args.recipe,
            calibration=args.calibration,
            seed=args.seed,
            progress=progress,
        )
        model.write(args.output)
    size = Path(args.output).stat().st_size
    print(f"{args.output}: {model.shape.parameters:,} weights in {size:,} bytes, {model.recipe}")
    return 0
