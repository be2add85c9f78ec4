"""Where a model stands in the memory of a device, and whether it fits there."""

from __future__ import annotations

from collections.abc import Callable

from tokenfabric.compiler.program import Program
from tokenfabric.core import isa
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.errors import UserError
from tokenfabric.core.fixed import round_up
from tokenfabric.core.image import PAGE, MemoryMap, memory_fault
from tokenfabric.core.kv import KvLayout
from tokenfabric.core.shape import ModelShape
from tokenfabric.core.weights import INT8, superblocks
from tokenfabric.core.work import work_of

__all__ = ["MAX_SLOTS", "check_least", "check_memory", "memory_map"]

MAX_SLOTS = 256  # the accelerator tells slots apart by 8 bits
RING_BYTES = 8  # of a row and step


def memory_map(
    cfg: FabricConfig, s: ModelShape, program: Program, context: int, slots: int
) -> tuple[MemoryMap, KvLayout]:
    """Where everything stands: the constant parts page by page, then K, V and K scales.

    program: one of this shape; neither its weights nor its addresses are looked at.
    """
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


def check_least(cfg: FabricConfig, s: ModelShape, context: int) -> None:
    """UserError if the board of ``cfg`` has not even room for what a model of this shape must have,
    whatever its program. At once: :func:`check_memory` is exact."""
    work = work_of(s)
    weights = work.layer_bytes + work.classifier_bytes * (1 if s.tied else 2)
    if fault := memory_fault(cfg, weights + work.kv_bytes_per_position * context, 0):
        raise UserError(
            f"{fault}: dim = {s.dim}, hidden = {s.hidden}, layers = {s.layers}, vocab = {s.vocab} "
            f"with a context of {context} are too large; choose a smaller model or context"
        )


def check_memory(
    cfg: FabricConfig, s: ModelShape, program: Program, context: int | None, slots: int
) -> int:
    """Positions of a slot: ``context``, or by default the model's or what ``cfg`` has room for.

    UserError if there are not so many positions or slots, or if the memory of the board or a window
    is too small for them: it says how many fit.
    """
    most = min(s.context, cfg.max_context)
    wanted = most if context is None else context
    if not 0 < wanted <= most:
        raise UserError(
            f"context {wanted} does not fit: the model has {s.context} positions, {cfg.name} "
            f"has room for {cfg.max_context}; choose from 1 to {most}"
        )
    if not 0 < slots <= MAX_SLOTS:
        raise UserError(f"{slots} slots; choose from 1 to {MAX_SLOTS}")

    def fault(positions: int, sequences: int) -> str | None:
        return memory_fault(
            cfg, *memory_map(cfg, s, program, positions, sequences)[0].windows(sequences)
        )

    if (text := fault(wanted, slots)) is None:
        return wanted
    if fault(1, 1):
        raise UserError(
            f"{text}: dim = {s.dim}, hidden = {s.hidden}, layers = {s.layers}, vocab = {s.vocab} "
            "are too large for any context; choose a smaller model or another board"
        )
    positions = _largest(wanted, lambda n: fault(n, slots) is None)
    sequences = _largest(slots, lambda n: fault(wanted, n) is None)
    fits = [f"a context of {positions}"] * (positions > 0) + [f"{sequences} slots"] * (
        sequences > 0
    )
    raise UserError(
        f"{text}, with {slots} slots of context {wanted}; choose at most "
        f"{' or '.join(fits) or '1 slot and a smaller context'}"
    )


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to ``most`` that fits, if every smaller one does, too; 0 if none."""
    low = 0
    while low < most:
        middle = (low + most + 1) // 2
        if fits(middle):
            low = middle
        else:
            most = middle - 1
    return low
