"""Small random models for tests of everything between the model file and the tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tokenfabric.compiler.compile import compile_model
from tokenfabric.core.config import FabricConfig, preset
from tokenfabric.core.image import Image
from tokenfabric.core.shape import ModelShape
from tokenfabric.host.tokenizer import Tokenizer
from tokenfabric.quant.qmodel import QModel
from tokenfabric.sim.golden import GoldenDevice

SMALL = ModelShape(
    dim=64, hidden=96, layers=2, heads=4, kv_heads=2, head_dim=16, vocab=96, context=64
)
ODD = replace(SMALL, dim=40, hidden=52, heads=3, kv_heads=1, head_dim=20, vocab=77, tied=False)
DUMPED = 64  # rows of logits that golden() has room for


def golden(
    shape: ModelShape = SMALL, name: str = "pynq-z2", seed: int = 0, context: int | None = None
) -> tuple[QModel, FabricConfig, Image, GoldenDevice]:
    """A random model, compiled, and an empty golden device for it."""
    model, cfg = QModel.random(shape, seed), preset(name)
    image = compile_model(model, cfg, context=context)
    return model, cfg, image, GoldenDevice(cfg, image.memory(DUMPED))


def prompt(length: int, vocab: int = SMALL.vocab, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng([seed, length]).integers(0, vocab, length)]


def greedy(model: QModel, tokens: list[int], count: int) -> list[int]:
    """What greedy decoding must give: the whole forward pass again for every token."""
    tokens = list(tokens)
    for _ in range(count):
        tokens.append(int(model.forward(tokens)[-1].argmax()))
    return tokens[-count:]


def byte_tokenizer() -> Tokenizer:
    """A tokenizer of bytes alone, as llama2.c's would be with nothing merged."""
    return Tokenizer(
        pieces=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        scores=[0.0] * 259,
        bos=1,
        eos=[2],
        special=[0, 1, 2],
        byte_fallback=True,
    )


SPEAKING = replace(SMALL, vocab=259)


def speaking_model() -> QModel:
    """A random model with a tokenizer; what it says is noise."""
    model = QModel.random(SPEAKING, 0)
    model.tokenizer = byte_tokenizer().to_bytes()
    return model
