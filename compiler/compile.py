"""From a quantized model to an image: program, weight stream and the map of the memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenfabric.compiler.check import check_program
from tokenfabric.compiler.lower import channels, lower, outline, select
from tokenfabric.compiler.memory import check_memory, memory_map
from tokenfabric.compiler.program import Program
from tokenfabric.compiler.sizes import Sizes, sizes_of
from tokenfabric.core import isa, ops
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.image import PAGE, Image, MemoryMap
from tokenfabric.core.isa import Instruction
from tokenfabric.core.kv import KvLayout
from tokenfabric.core.shape import ModelShape
from tokenfabric.core.weights import to_superblocks
from tokenfabric.core.work import work_of
from tokenfabric.quant.qmodel import QModel

__all__ = ["check_fits", "compile_model", "program_of", "program_outline"]

Array = npt.NDArray[Any]


def program_of(shape: ModelShape, cfg: FabricConfig) -> tuple[int, list[Instruction]]:
    """Rows of a step, and the program that :func:`compile_model` makes of a model of this shape.

    At once and without weights: shifts are 0, and so is the address of the KV cache, which has one
    slot of one position. UserError if it does not fit.
    """
    sizes = sizes_of(cfg, shape)
    return sizes.rows, program_outline(cfg, shape, sizes).code


def check_fits(
    shape: ModelShape, cfg: FabricConfig, *, context: int | None = None, slots: int = 1
) -> None:
    """UserError where :func:`compile_model` would refuse a model of this shape: at once."""
    check_memory(cfg, shape, program_outline(cfg, shape, sizes_of(cfg, shape)), context, slots)


def program_outline(cfg: FabricConfig, shape: ModelShape, sizes: Sizes) -> Program:
    """That program, still under construction: how many words of the stream it takes."""
    return lower(cfg, outline(shape), sizes, KvLayout.of(cfg, shape, 1, 1, 0))


def compile_model(
    model: QModel,
    cfg: FabricConfig,
    *,
    name: str = "model",
    context: int | None = None,
    slots: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Image:
    """Compile ``model`` for the accelerator ``cfg``.

    context: positions of a slot, the model's (or what the accelerator has room for) by default.
    slots: sequences that can be in memory at a time. UserError where the model does not fit.
    """
    s = model.shape
    sizes = sizes_of(cfg, s)
    # The sizes of all parts follow from the shape: addresses are known before a weight is packed.
    program = program_outline(cfg, s, sizes)
    context = check_memory(cfg, s, program, context, slots)
    memory, kv = memory_map(cfg, s, program, context, slots)
    program = lower(cfg, model, sizes, kv, progress)
    check_program(cfg, sizes.rows, program.code)
    return Image(
        preset=cfg.name,
        fingerprint=cfg.fingerprint,
        name=name,
        rows=sizes.rows,
        context=context,
        layers=s.layers,
        slots=slots,
        vocab=s.vocab,
        head_bytes=kv.head_bytes,
        logits_frac=model.logits_frac,
        **vars(work_of(s)),
        map=memory,
        tokenizer=model.tokenizer,
        payload=_payload(cfg, model, program, memory, kv),
    )


def _payload(
    cfg: FabricConfig, model: QModel, program: Program, memory: MemoryMap, kv: KvLayout
) -> Array:
    """uint8: device memory from PAGE to the KV cache."""
    s = model.shape
    payload = np.zeros(memory.kv - PAGE, np.uint8)

    def put(at: int, data: Array) -> None:
        payload[at - PAGE : at - PAGE + data.size] = data

    code = b"".join(map(isa.encode, program.code))
    put(memory.program, np.frombuffer(code, np.uint8))
    body = to_superblocks(cfg, program.stream(want=0))
    put(memory.stream, body)
    put(memory.stream + body.size, to_superblocks(cfg, program.stream(want=1)))
    if not s.tied:
        rows = select(model.embedding, channels(1, s.vocab, cfg.cols))
        put(memory.embedding, to_superblocks(cfg, rows.format.pack(cfg, rows.weight, rows.mult)))
    table = np.zeros((kv.positions, kv.head_bytes), "<i2")
    positions = np.arange(kv.positions)
    rows = ops.rope_table(positions, s.head_dim, s.rope_theta, s.rope_scale)
    table[:, : s.head_dim] = rows
    put(memory.rope, table.view(np.uint8).ravel())
    return payload
