"""Show what is in a model file, an image or a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenfabric.commands.inputs import kind_of

if TYPE_CHECKING:
    from tokenfabric.core.shape import ModelShape


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="model file, image or checkpoint")


def run(args: argparse.Namespace) -> int:
    path = Path(args.file)
    kind = kind_of(path)
    show = {"model": _model, "image": _image, "checkpoint": _checkpoint}[kind]
    lines = list(show(path))  # all of it before the first line, for it may refuse
    print("\n".join([f"{path}: {kind}", *lines]))
    return 0


def _shape(shape: ModelShape) -> Iterator[str]:
    yield from _pairs(asdict(shape))
    yield f"  {'parameters':<32}{shape.parameters:,}"


def _pairs(values: dict[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        yield f"  {name:<32}{value:,}" if type(value) is int else f"  {name:<32}{value}"


def _model(path: Path) -> Iterator[str]:
    from tokenfabric.quant.qmodel import QModel

    model = QModel.read(path)
    yield from _shape(model.shape)
    yield from _pairs({"recipe": model.recipe, "tokenizer bytes": len(model.tokenizer)})
    yield "fraction bits"
    yield from _pairs({"residual": model.res_frac, "logits": model.logits_frac})
    for number, layer in enumerate(model.layers):
        bits = {
            "attn_norm": layer.norms["attn_norm"].frac,
            "q": layer.q_frac,
            "k": layer.k_frac,
            "scores": layer.score_frac,
            "ffn_norm": layer.norms["ffn_norm"].frac,
            "gate": layer.gate_frac,
            "up": layer.up_frac,
            "h": layer.h_frac,
        }
        yield f"  layer {number:<3} " + "  ".join(f"{n} {b}" for n, b in bits.items())


def _image(path: Path) -> Iterator[str]:
    from tokenfabric.core import isa
    from tokenfabric.core.image import PAGE, Image

    image = Image.read(path)
    shown = {k: v for k, v in vars(image).items() if k not in ("map", "payload", "tokenizer")}
    yield from _pairs({**shown, "memory bytes": sum(image.memory())})
    yield "memory map (device addresses and pitches in bytes)"
    for name, value in asdict(image.map).items():
        yield f"  {name:<32}{value:#x}"
    yield "program"
    start = image.map.program - PAGE
    for number in range(image.map.program_words):
        at = start + number * isa.INSTRUCTION_BYTES
        data = image.payload[at : at + isa.INSTRUCTION_BYTES].tobytes()
        try:
            text = isa.disassemble(isa.decode(data))
        except ValueError:
            text = f"illegal {data.hex()}"
        yield f"  {number:>5}  {text}"


def _checkpoint(path: Path) -> Iterator[str]:
    import numpy as np

    from tokenfabric.quant.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    yield from _shape(checkpoint.shape)
    yield "tensors"
    for name, array in checkpoint.tensors():
        dims = " x ".join(map(str, array.shape))
        largest, rms = np.abs(array).max(), np.sqrt(np.mean(array.astype(np.float64) ** 2))
        yield f"  {name:<24}{dims:<16}  largest {largest:<10.4g}  rms {rms:.4g}"
