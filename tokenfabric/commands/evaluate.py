"""Measure how far a quantized model is from its float checkpoint on a text."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tokenfabric.commands.inputs import load_model, tokenizer_of
from tokenfabric.commands.options import add_json, check_output, print_table, write_json
from tokenfabric.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="M", help="model file, or a checkpoint to quantize on the fly")
    add("--text", metavar="FILE", required=True, help="one text a line")
    add("--against", metavar="CHECKPOINT", required=True, help="the float model")
    add("--tokenizer", metavar="FILE", help="if M is a checkpoint that does not bring its own")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from tokenfabric.quant.checkpoint import load_checkpoint
    from tokenfabric.quant.evaluate import compare, read_lines, read_sequences

    check_output(args.json)
    read_lines(args.text)  # before the work
    path = Path(args.model)
    with Progress() as progress:
        checkpoint = load_checkpoint(Path(args.against))
        model = load_model(path, args.tokenizer, progress)
        tokenizer = tokenizer_of(model.tokenizer, path)
        shape = model.shape
        sequences = read_sequences(args.text, tokenizer, shape.vocab, shape.context)
        result = compare(model, checkpoint, sequences, progress)
    print_table(_table(result), args.json)
    write_json(args.json, result)
    return 0


def _table(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    counts = {name: count for name, count in result["saturations"].items() if count}
    where = ", ".join(f"{name} {count}" for name, count in counts.items())
    return [
        ("KL divergence", f"{result['kl']:.6f}", "nats per token"),
        ("same first choice", f"{result['top1']:.2f} %", ""),
        ("perplexity", f"{result['perplexity']:.4f}", f"float: {result['perplexity_float']:.4f}"),
        ("tokens", f"{result['tokens']:,}", ""),
        ("saturated values", f"{sum(counts.values()):,}", where),
    ]
