"""Which accelerator fits a board and runs a model fastest: configs tried without any hardware.

Their time comes from :mod:`tokenfabric.compiler.timing`, their area from
:mod:`tokenfabric.compiler.area`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any

from tokenfabric.compiler.area import area, shares
from tokenfabric.compiler.compile import program_outline
from tokenfabric.compiler.memory import check_least, check_memory
from tokenfabric.compiler.sizes import memory_needs, sizes_of
from tokenfabric.compiler.timing import estimate_decode, estimate_prefill
from tokenfabric.core.boards import BoardSpec
from tokenfabric.core.config import BURST_BEATS, FabricConfig
from tokenfabric.core.errors import UserError
from tokenfabric.core.fixed import round_up
from tokenfabric.core.shape import ModelShape

__all__ = ["FILL", "Candidate", "best_first", "explore", "front", "rate"]

FILL = 0.80  # of every resource, at most: beyond it, place and route has little to choose from
STEP = 0.01  # of speed and of area: smaller differences are not told apart
LONGEST = 2048  # positions that an accelerator has room for, unless more are asked for
MEMORY_STEP = 256  # chunks
ARRAY_ROWS = (8, 16, 32, 64, 128)
STEP_ROWS = (1, 2, 4, 8, 16, 32)
FIFO_BEATS = (256, 512, 1024, 2048, 4096)
KV_BLOCKS = (4, 8, 16)

Refusals = defaultdict[tuple[int, int, int], list[str]]


@dataclass(frozen=True)
class Candidate:
    """A config, what it takes of the board and how fast it is."""

    cfg: FabricConfig
    area: dict[str, float]
    shares: dict[str, float]
    decode: dict[str, Any]
    prefill: dict[str, Any] | None  # None where none was asked for

    @property
    def size(self) -> float:
        """The part of the board that it takes: the mean share of LUTs, DSP slices, RAM blocks."""
        return fmean(self.shares[name] for name in ("lut", "dsp", "bram36"))

    @property
    def speed(self) -> float:
        """Tokens per second of the prefill if there is one, else of decoding."""
        return float((self.prefill or self.decode)["tokens_per_second"])


def rate(
    spec: BoardSpec, cfg: FabricConfig, shape: ModelShape, context: int, rows: int | None
) -> Candidate:
    """A config on a board. UserError where the model does not fit it."""
    decode = estimate_decode(cfg, shape, context)
    prefill = None if rows is None else estimate_prefill(cfg, shape, rows)
    found, parts = area(cfg), shares(cfg, spec.fpga)
    return Candidate(cfg, found, parts, decode, prefill)


def explore(
    spec: BoardSpec,
    shape: ModelShape,
    context: int,
    rows: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Candidate]:
    """Every config that fits the board and the model, best first.

    The clock, the DRAM and the widest ports are those of the board's preset. UserError if the model
    is too large for the board's memory or for every config.
    """
    check_least(spec.config, shape, context)
    refusals: Refusals = defaultdict(list)
    found, configs = [], list(_configs(spec, shape, max(context, rows or 1), refusals))
    for number, cfg in enumerate(configs):
        if progress is not None:
            progress("exploring", number, len(configs))
        try:
            candidate = rate(spec, cfg, shape, context, rows)
        except UserError as error:
            refusals[cfg.rows, cfg.cols, cfg.ports].append(str(error))
            continue
        found.append(candidate)
    if not found:
        own = (spec.config.rows, spec.config.cols, spec.config.ports)  # an array that can be
        why, _ = Counter(refusals[own]).most_common(1)[0]
        raise UserError(f"no accelerator for this model fits the {spec.title}: {why}")
    return best_first(found)


def best_first(found: list[Candidate]) -> list[Candidate]:
    """By speed; of those that are the same within STEP the smallest first, and of those that are as
    small, too, the one with most rows."""
    top = max(c.speed for c in found)
    equal = [c for c in found if c.speed >= (1 - STEP) * top]
    others = sorted((c for c in found if c.speed < (1 - STEP) * top), key=lambda c: -c.speed)

    def smallest(c: Candidate) -> tuple[float, ...]:
        cfg = c.cfg
        return (c.size, -c.speed, -cfg.max_rows, cfg.weight_fifo_beats, cfg.kv_chunks, cfg.rows)

    return sorted(equal, key=smallest) + others


def front(found: list[Candidate]) -> list[Candidate]:
    """Of ``found`` (best first) those that no other one beats in speed and in size by STEP."""
    kept: list[Candidate] = []
    for candidate in found:
        if not kept or candidate.size < kept[-1].size - STEP:
            kept.append(candidate)
    return kept


def _configs(
    spec: BoardSpec, shape: ModelShape, positions: int, refusals: Refusals
) -> Iterator[FabricConfig]:
    """Configs whose area fits, each with memories as large as the model needs; why others are
    none goes to ``refusals``, by rows, columns and ports of the array."""
    base = spec.config
    widths = [cols for cols in (8, 16) if cols <= base.port_bytes]
    ports = [count for count in (1, 2, 4, 8) if count <= base.ports]
    for cols, count, rows in product(widths, ports, ARRAY_ROWS):
        for most, beats, blocks in product(STEP_ROWS, FIFO_BEATS, KV_BLOCKS):
            try:
                cfg = _config(spec, shape, positions, cols, count, rows, most, beats, blocks)
            except UserError as error:
                refusals[rows, cols, count].append(str(error))
                continue
            if max(shares(cfg, spec.fpga).values()) < FILL:
                yield cfg
            else:
                text = f"{cfg.name} takes more than {FILL:.0%} of one of its resources"
                refusals[rows, cols, count].append(text)


def _config(
    spec: BoardSpec,
    shape: ModelShape,
    positions: int,
    cols: int,
    ports: int,
    rows: int,
    most: int,
    beats: int,
    blocks: int,
) -> FabricConfig:
    """An array of ``rows`` x ``cols``, steps of ``most`` rows, FIFOs of ``beats``, a KV buffer of
    so many ``blocks``. UserError if that is impossible."""
    base = spec.config
    head = max(2 * cols, 1 << (shape.head_dim - 1).bit_length())
    room = 1 << (max(positions, min(shape.context, LONGEST), 64, rows) - 1).bit_length()
    cfg = base.replace(
        name=f"{spec.name}-{rows}x{cols}",
        rows=rows,
        cols=cols,
        ports=ports,
        ps_ports=base.ps_ports[:ports],
        max_rows=most,
        max_context=room,
        max_head_dim=head,
        weight_fifo_beats=beats,
        kv_chunks=blocks * max(rows, BURST_BEATS) * head // cols,
        in_chunks=8192,
        program_words=1 << 14,
        fabric_rows=0,
        ultra=base.ultra,
    )
    step = cfg.word_rows
    while shares(cfg, spec.fpga)["dsp"] >= FILL:  # the rest multiplies in LUTs
        cfg = cfg.replace(fabric_rows=cfg.fabric_rows + step)
    needs = memory_needs(cfg, shape)
    sizes = {name: need * (1 if name == "param_chunks" else most) for name, need in needs.items()}
    cfg = cfg.replace(**{name: round_up(size, MEMORY_STEP) for name, size in sizes.items()})
    program = program_outline(cfg, shape, sizes_of(cfg, shape))
    check_memory(cfg, shape, program, positions, 1)
    return cfg.replace(program_words=round_up(len(program.items), MEMORY_STEP))
