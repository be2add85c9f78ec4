"""From a quantized model to an image: program, weight stream and the map of the memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenfabric.compiler.check import check_program
from tokenfabric.compiler.lower import channels, lower, outline, select
from tokenfabric.compiler.program import Program
from tokenfabric.compiler.sizes import Sizes, sizes_of
from tokenfabric.core import isa, ops
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.errors import UserError
from tokenfabric.core.fixed import round_up
from tokenfabric.core.image import PAGE, Image, MemoryMap
from tokenfabric.core.isa import Instruction
from tokenfabric.core.kv import KvLayout
from tokenfabric.core.shape import ModelShape
from tokenfabric.core.weights import INT8, superblocks, to_superblocks
from tokenfabric.core.work import work_of
from tokenfabric.quant.qmodel import QModel

__all__ = ["compile_model", "program_of"]

Array = npt.NDArray[Any]
MAX_SLOTS = 256  # the accelerator tells slots apart by 8 bits
RING_BYTES = 8  # of a row and step


def program_of(shape: ModelShape, cfg: FabricConfig) -> tuple[int, list[Instruction]]:
    """Rows of a step, and the program that :func:`compile_model` makes of a model of this shape.

    At once and without weights: shifts are 0, and so is the address of the KV cache, which has one
    slot of one position. UserError if it does not fit.
    """
    sizes = sizes_of(cfg, shape)
    return sizes.rows, _outline(cfg, shape, sizes).code


def _outline(cfg: FabricConfig, shape: ModelShape, sizes: Sizes) -> Program:
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
    most = min(s.context, cfg.max_context)
    context = most if context is None else context
    if not 0 < context <= most:
        raise UserError(
            f"context {context} does not fit: the model has {s.context} positions, {cfg.name} "
            f"has room for {cfg.max_context}; choose from 1 to {most}"
        )
    if not 0 < slots <= MAX_SLOTS:
        raise UserError(f"{slots} slots; choose from 1 to {MAX_SLOTS}")
    sizes = sizes_of(cfg, s)
    # The sizes of all parts follow from the shape: addresses are known before a weight is packed.
    memory, kv = _memory_map(cfg, s, _outline(cfg, s, sizes), context, slots)
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


def _memory_map(
    cfg: FabricConfig, s: ModelShape, program: Program, context: int, slots: int
) -> tuple[MemoryMap, KvLayout]:
    """Where everything stands: the constant parts page by page, then K, V and K scales."""
    body, head = (superblocks(program.stream_words(want)) for want in (0, 1))
    words = len(program.items)
    rope_rows = KvLayout.of(cfg, s, context, slots, 0).positions
    head_bytes = round_up(s.head_dim, cfg.cols)
    at = PAGE

    def place(size: int) -> int:
        nonlocal at
        here, at = at, round_up(at + size, PAGE)
        return here

    code_at = place(words * isa.INSTRUCTION_BYTES)
    stream = place((body + head) * cfg.superblock_bytes)
    embedding = stream + body * cfg.superblock_bytes  # tied: the classifier in the stream
    if not s.tied:
        embedding = place(head * cfg.superblock_bytes)
    rope = place(2 * head_bytes * rope_rows)
    kv = KvLayout.of(cfg, s, context, slots, at)
    ring = isa.JOB + PAGE
    memory = MemoryMap(
        program=code_at,
        program_words=words,
        stream=stream,
        stream_body=body,
        stream_full=body + head,
        embedding=embedding,
        embedding_group=INT8.group_bytes(cfg, s.dim),
        rope=rope,
        kv=kv.base,
        v_offset=kv.v_offset,
        kv_slot=kv.slot,
        kv_head=kv.head,
        scale_slot=kv.scale_slot,
        scale_head=kv.scale_head,
        ring=ring,
        logits=ring + round_up(RING_BYTES * kv.positions * cfg.max_rows, PAGE),
        logits_stride=4 * round_up(s.vocab, cfg.cols),
        end=round_up(kv.end, PAGE),
    )
    return memory, kv


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
